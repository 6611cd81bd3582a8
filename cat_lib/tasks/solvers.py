"""Formulations solved, bounded in time, memory and size: HiGHS for what is linear, SCIP for the rest.

An outcome is a fact about the formulation: optimal, infeasible, unbounded or malformed. What meets a limit, or the want
of a solver, is lost, and neither right nor wrong. The solving is done by solver_worker.py.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cat_lib.schema import Lost
from cat_lib.tasks.workers import Pool

LIMIT = 4.0  # seconds of processor time a formulation may take; an LP of 8 variables takes 0.002
MEMORY = 4 << 30  # bytes of address space of a worker
REPLY = 200_000  # characters of an outcome
SMALL, PRICINGS = 1e-6, 3  # of a whole; times that two models are compared at other prices
MISSING = "SCIP solves what is not linear, and is not installed: pip install pyscipopt==6.3.0"

_LIMIT = Lost(f"the solver's limit: over {LIMIT:g} s or {MEMORY >> 30} GiB")
_pool = Pool([sys.executable, "-m", "cat_lib.tasks.solver_worker"], "solve formulations", _LIMIT, _LIMIT)


@dataclass(frozen=True)
class Outcome:
    """What a formulation comes to. `values` are an optimum's decision variables, `unique` if no other is as good.

    Uniqueness is known of linear models without integers alone; elsewhere, and in doubt, it is False.
    """

    status: str  # "optimal", "infeasible", "unbounded" or "malformed"
    objective: float = 0.0
    values: Mapping[str, float] = field(default_factory=dict)
    unique: bool = False
    nonlinear: bool = False
    why: str = ""  # of what is malformed

    @property
    def answer(self) -> str | None:
        """The optimum's value, with "~" before it if it is compared by 2 %; or the status; None if malformed."""
        if self.status != "optimal":
            return None if self.status == "malformed" else self.status
        digits = f"{self.objective:.4f}".rstrip("0").rstrip(".")  # solvers err in the sixth place
        return ("~" if self.nonlinear else "") + ("0" if digits == "-0" else digits)

    def named(self, words: str) -> Outcome:
        """The same with the variables alone that the words name, `open_north` by north: others are auxiliary.

        All, where the words name none: then they are symbols, and nothing says which are auxiliary.
        """
        said = set(re.findall(r"[a-z0-9]+", words.lower()))
        own = {name: value for name, value in self.values.items() if said & {*name.lower().split("_")}}
        return replace(self, values=own or self.values)


def solve(texts: Sequence[str]) -> list[Outcome | Lost]:
    """The outcome of each formulation, or why it is lost. Raises RuntimeError if no worker can be started."""
    asked = [text.replace("\0", "?") for text in texts]
    replies = _pool.ask(asked)
    found = [one if isinstance(one := replies[text], Lost) else json.loads(one) for text in asked]
    lost = {"limit": _LIMIT, MISSING: Lost(MISSING)}
    return [one if isinstance(one, Lost) else lost.get(one["status"]) or Outcome(**one) for one in found]


def same_models(pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
    """Whether the formulations of each pair are one model: the same optimum, and at random re-pricings too.

    Stricter than equal objectives, which a wrong model may have by luck. The first may have variables more than the
    second, if it has all of the second's by name. A malformed one is no model; None at a limit.
    """
    asked = ["\0".join(text.replace("\0", "?") for text in pair) for pair in pairs]
    replies = _pool.ask(asked)
    return [None if isinstance(one := replies[text], Lost) else json.loads(one).get("same", False) for text in asked]


def near(one: float, other: float, nonlinear: bool = False) -> bool:
    """Whether two objectives are the same to 2 decimals, or within 2 % for non-linear models (AutoOR)."""
    return math.isclose(one, other, rel_tol=0.02 if nonlinear else SMALL, abs_tol=0.005)


def equal(answer: str | None, truth: str) -> bool:
    """Whether an answer is the truth; how near it has to be, the truth says."""
    if answer is None or answer[-1].isalpha() or truth[-1].isalpha():
        return answer == truth
    return near(float(answer.lstrip("~")), float(truth.lstrip("~")), truth.startswith("~"))
