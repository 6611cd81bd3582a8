"""What a run cost, by role: calls, tokens, model FLOPs, seconds, and money where an endpoint bills.

FLOPs are 2 x parameters x tokens for a forward pass over the tokens really computed (a shared prefix counts once);
attention's own share is left out: it is below a tenth for prompts much shorter than 8 x the hidden size.
Tokens are what a metered API would bill: prompt plus completion of every sequence, shared or not.
Failed calls and answers from the cache are counted apart: the first may have been billed, the second cost nothing.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

clock = time.perf_counter  # seconds from an arbitrary start, for differences


@dataclass(frozen=True)
class Cost:
    """One role's account. `seconds` is wall-clock time inside the engine."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    usd: float = 0.0  # by the caller's price table
    failures: int = 0  # calls without a usable answer
    cache_hits: int = 0  # answers that needed no call

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(*map(operator.add, astuple(self), astuple(other)))

    def __sub__(self, other: Cost) -> Cost:
        return Cost(*map(operator.sub, astuple(self), astuple(other)))


class Ledger:
    """Costs by role: `policy` (rollouts), `anchor` (synthesis), `update` (training), `judge`."""

    def __init__(self) -> None:
        self.roles: dict[str, Cost] = {}

    def add(self, role: str, *, calls: int = 1, **spent: Any) -> None:
        """Add to a role's account, by the names of `Cost`, what calls cost, or with `calls=0` what needed none."""
        self.roles[role] = self.roles.get(role, Cost()) + Cost(calls=calls, **spent)

    @contextmanager
    def measure(self) -> Iterator[dict[str, Cost]]:
        """Collect what is spent inside the block: filled when it ends, with the roles that did something."""
        before, spent = dict(self.roles), dict[str, Cost]()
        try:
            yield spent
        finally:
            spent |= {r: cost - before.get(r, Cost()) for r, cost in self.roles.items() if cost != before.get(r)}


def cost_metrics(roles: Mapping[str, Cost]) -> dict[str, float]:
    """Flat `<role>_tokens`, `_seconds`, `_flops`, as the run's metrics name them; a judge's other counts too."""
    units = {"judge": ("tokens", "seconds", "flops", "usd", "calls", "failures", "cache_hits")}
    return {
        f"{role}_{unit}": float(getattr(cost, unit))
        for role, cost in roles.items()
        for unit in units.get(role, ("tokens", "seconds", "flops"))
    }


def cost_table(roles: Mapping[str, Cost]) -> pd.DataFrame:
    """One row a role; columns tokens, flops, seconds."""
    import pandas as pd

    rows = {role: [cost.tokens, cost.flops, cost.seconds] for role, cost in roles.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["tokens", "flops", "seconds"])
