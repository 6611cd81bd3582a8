"""Rewards of models that rollouts wrote, by what a solver says of them (AutoOR, arXiv 2604.16804; SIRL, 2505.11792).

With references of `estimators.objectives` no label is read; with those of `voting.gold`, or a rule called gold, it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cat_lib.schema import Completion, Group, Lost, Reference, RewardRule
from cat_lib.tasks.formulate import written
from cat_lib.tasks.solvers import Outcome, equal, solve

_Rate = Callable[[Completion, Outcome | None, Outcome], float]  # rollout, its outcome, the right one


def objective(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
    """1.0 for a rollout whose optimum is its reference's, to 2 decimals (2 % if that is not linear), 0.0 for others.

    None where the group has no reference, or the solver met a limit.
    """
    truths = [reference.answer if reference else None for reference in references]
    return [
        [None if truth is None or i in group.lost else float(equal(a, truth)) for i, a in enumerate(group.answers)]
        for group, truth in zip(groups, truths, strict=True)
    ]


def gold_solution(models: Mapping[str, str]) -> RewardRule:
    """1.0 for the right objective and, where the right model has one solution only, its decision variables too.

    `models` are right ones by question id. Where a problem may have several solutions, as any with integers may, the
    variables are not compared. Compared are the values, to 3 decimals, of those that the problem's words name: a model
    is as right without an auxiliary variable of the right one, as blending's total, or with one of its own.
    """
    return _gold_rule(models, lambda _, o, g: float(_gold_equal(o, g) and (not g.unique or _gold_hits(o, g) == 1)))


def gold_staged(models: Mapping[str, str], stage: int) -> RewardRule:
    """SIRL's stages: answer, ran, and half a point each for ending and readable (1); answer, ran, answer x hits (2).

    "Ran" is an optimum, whatever it is; hits are the share of the right decision values, to 3 decimals, that it has.
    Raises ValueError for another stage.
    """
    if stage not in (1, 2):
        raise ValueError(f"stage={stage}: allowed is 1, which rewards form too, or 2, which rewards the solution")

    def rate(rollout: Completion, outcome: Outcome | None, gold: Outcome) -> float:
        ran, right = outcome is not None and outcome.status == "optimal", _gold_equal(outcome, gold)
        form = 0.5 * rollout.ended + 0.5 * (outcome is not None and outcome.status != "malformed")
        return ran + right + (form if stage == 1 else right * _gold_hits(outcome, gold))

    return _gold_rule(models, rate)


def _gold_rule(models: Mapping[str, str], rate: _Rate) -> RewardRule:
    def rule(groups: Sequence[Group], references: Sequence[Reference | None]) -> list[list[float | None]]:
        texts = [[written(rollout) for rollout in group.rollouts] for group in groups]
        asked = list(dict.fromkeys([models[g.id] for g in groups] + [t for row in texts for t in row if t is not None]))
        said: dict[str | None, Outcome | Lost] = dict(zip(asked, solve(asked), strict=True))
        rewards = list[list[float | None]]()
        for group, row in zip(groups, texts, strict=True):
            gold, found = said[models[group.id]], [(r, said.get(t)) for r, t in zip(group.rollouts, row, strict=True)]
            gold = gold if isinstance(gold, Lost) else gold.named(group.question)
            rewards.append(
                [None if isinstance(gold, Lost) or isinstance(o, Lost) else rate(r, o, gold) for r, o in found]
            )
        return rewards

    return rule


def _gold_equal(outcome: Outcome | None, gold: Outcome) -> bool:
    return outcome is not None and gold.answer is not None and equal(outcome.answer, gold.answer)


def _gold_hits(outcome: Outcome | None, gold: Outcome) -> float:
    ours, theirs = (Counter(round(v, 3) + 0.0 for v in o.values.values()) if o else Counter() for o in (outcome, gold))
    return (ours & theirs).total() / max(1, theirs.total())
