"""What a run cost, by role: calls, tokens, model FLOPs and seconds.

FLOPs are 2 x parameters x tokens for a forward pass over the tokens really computed (a shared prefix counts once);
attention's own share is left out: it is below a tenth for prompts much shorter than 8 x the hidden size.
Tokens are what a metered API would bill: prompt plus completion of every sequence, shared or not.
Money is left out until an engine that bills exists.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields

import pandas as pd


@dataclass
class Cost:
    """One role's account. `seconds` is wall-clock time inside the engine."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})

    def __sub__(self, other: Cost) -> Cost:
        return Cost(**{f.name: getattr(self, f.name) - getattr(other, f.name) for f in fields(self)})


class Ledger:
    """Costs by role: `policy` (rollouts), `anchor` (synthesis), `update` (training), `judge`."""

    def __init__(self) -> None:
        self.roles: dict[str, Cost] = {}

    def add(self, role: str, *, prompt_tokens: int, completion_tokens: int, flops: float, seconds: float) -> None:
        """Add one call of an engine to a role's account."""
        cost = self.roles.setdefault(role, Cost())
        cost.calls += 1
        cost.prompt_tokens += prompt_tokens
        cost.completion_tokens += completion_tokens
        cost.flops += flops
        cost.seconds += seconds

    @contextmanager
    def measure(self) -> Iterator[dict[str, Cost]]:
        """Collect what is spent inside the block: the yielded dict is filled, by role, when the block ends."""
        before = {role: Cost(**asdict(cost)) for role, cost in self.roles.items()}
        spent: dict[str, Cost] = {}
        try:
            yield spent
        finally:
            spent.update({role: cost - before.get(role, Cost()) for role, cost in self.roles.items()})


def cost_metrics(roles: Mapping[str, Cost]) -> dict[str, float]:
    """Flat `<role>_tokens`, `<role>_seconds`, `<role>_flops`, as the run's metrics name them."""
    return {
        f"{role}_{unit}": float(getattr(cost, unit))
        for role, cost in roles.items()
        for unit in ("tokens", "seconds", "flops")
    }


def cost_table(roles: Mapping[str, Cost]) -> pd.DataFrame:
    """One row a role; columns tokens, flops, seconds."""
    rows = {role: [cost.tokens, cost.flops, cost.seconds] for role, cost in roles.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["tokens", "flops", "seconds"])


def clock() -> float:
    """Seconds from an arbitrary start, for differences."""
    return time.perf_counter()
