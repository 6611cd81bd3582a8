"""The solver's self-consistency on questions that a generator posed: what it answers, several times, to each.

The estimator of posing methods. Its reference is no truth but what is known of each rollout's question without a label;
rules (rewards/posed.py) make rewards of it. The paper asks 10 times, posed questions at temperature 1 and seeds at 0.6
(Reasoning-Synthesis, `start_vllm_server_rl.py`, `evaluate_seed.py`), so that its two numbers are on different scales.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from cat_lib.schema import Estimator, Example, Group, Model, Reference, Sampling
from cat_lib.tasks import sample_groups
from cat_lib.tasks.likeness import clusters
from cat_lib.tasks.posing import BANDS, Posable, Posing


@dataclass(frozen=True)
class Posed:
    """One rollout of a generator, and what the solver made of it."""

    seed: str
    a_ori: float  # the seed's self-consistency
    question: str | None
    plan: str
    why: str  # why there is no question; empty: there is one
    formed: bool
    level: str  # as a task that can check its questions has it, for plots alone
    largest: int  # of `asked` answers, `readable` of them readable, those that the most frequent one has
    readable: int
    asked: int  # 0: no question, or an answer to it was lost
    share: float  # of its cluster of near-duplicates among all rollouts of the call; without a question it is alone
    copy: bool  # it is its seed, or was posed before in this call

    @property
    def of_all(self) -> float:
        return self.largest / self.asked if self.asked else 0.0

    @property
    def of_valid(self) -> float:
        return self.largest / self.readable if self.readable else 0.0

    @property
    def ill_posed(self) -> bool:
        """No two answers agree: difficulty explains no more of them than chance. A hard question can look so too."""
        return self.asked > 0 and self.largest < 2


@dataclass(frozen=True)
class Asked(Reference):
    """What `consistency` refers to: the record of each rollout of a group."""

    posed: tuple[Posed, ...] = ()


def consistency(solver: Model, task: Posing, n: int, sampling: Sampling) -> Estimator:
    """An estimator that asks `solver` n times what each rollout asks, equal questions once; each call draws alike.

    Raises ValueError for n below 2.
    """
    if n < 2:
        raise ValueError(f"n={n} answers: nothing can agree with itself; allowed is 2 or more (the paper's is 10)")

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        texts = [text for group in groups for text in group.answers]
        read = [e for t in dict.fromkeys(texts) if t is not None and isinstance(e := task.of.posed(t), Example)]
        known = {g.question: g.answers for g in sample_groups(solver, task.of, read, n, sampling) if not g.lost}
        questions = [t for t in texts if t is not None]
        cluster: dict[str | None, int] = dict(zip(questions, clusters(questions), strict=True))
        size, seen, found = Counter(map(cluster.get, questions)), set[str](), list[Reference | None]()
        for group in groups:
            own = list[Posed]()
            for rollout, text in zip(group.rollouts, group.answers, strict=True):
                w, votes = task.read(rollout), known.get(text or "", ())
                count = Counter(a for a in votes if a is not None)
                about = (w.plan, w.why, w.formed, getattr(w.question, "level", ""))
                answers = (max(count.values(), default=0), count.total(), len(votes))
                share, copy = size.get(cluster.get(text), 1) / len(texts), text in {*seen, group.question}
                own.append(Posed(group.id, task.difficulty[group.id], text, *about, *answers, share, copy))
                seen.update([text] if text else [])
            found.append(Asked(", ".join(f"{p.largest} of {p.asked}" for p in own), None, "consistency", tuple(own)))
        return found

    return estimate


def seed_difficulty(
    solver: Model, task: Posable, seeds: Sequence[Example], n: int, sampling: Sampling
) -> dict[str, float]:
    """a_ori of each seed by its id: the largest answer's share of the readable ones of n; without any it is left out.

    Warns where all are in one band of difficulty. Raises ValueError if no seed is left.
    """
    groups = sample_groups(solver, task, seeds, n, sampling)
    valid = {g.id: Counter(a for a in g.answers if a is not None) for g in groups}
    found = {id: max(own.values()) / own.total() for id, own in valid.items() if own}
    if not found:
        raise ValueError(f"{solver.name!r} gives no readable answer to any of {len(seeds)} seeds; take easier ones")
    if len({(a < BANDS[0], a > BANDS[1]) for a in found.values()}) == 1:
        span = f"{min(found.values()):.2f} to {max(found.values()):.2f}"
        say = f"all {len(found)} seeds are of one difficulty ({span}), so the same is asked of the generator for each"
        warnings.warn(f"{say}: take seeds of several levels", stacklevel=2)
    return found
