"""AutoOR's curriculum for word problems that start at zero (arXiv 2604.16804, D.3): phases, and when to go on.

A phase is data: a level, and whether the scaffold stands in the prompt. The paper has easy problems with a scaffold,
the same without, then hard ones. A phase is trained by turns of plain `train`; after each, k rollouts are drawn of
problems of the next one, which is entered once any of them is a right model, by structural equality: a value may be
right by luck. That reads right models, whatever the arm's reward: with more than one phase no arm is without labels.
What was found is kept in the arm's folder, so that a run that is resumed goes the same way.

Left out: a threshold above zero, a way back, and mixed phases, of which the paper says nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import fmean

from cat_lib.files import append_line, read_lines
from cat_lib.runs.tracking import Run
from cat_lib.schema import Example, Judging, Model
from cat_lib.tasks import sample_groups
from cat_lib.tasks.formulate import FormulateTask


@dataclass(frozen=True)
class Phase:
    """What is trained on until the next phase can be learnt."""

    level: str
    scaffold: bool = False

    @property
    def name(self) -> str:
        return f"{self.level}_scaffold" if self.scaffold else self.level


@dataclass(frozen=True)
class Curriculum:
    """Phases in their order, each with `questions` problems of the task to train on, and `k` rollouts to look ahead by.

    One phase alone is training without a curriculum.
    """

    phases: Sequence[Phase]
    task: FormulateTask
    questions: int
    k: int

    def asked(self, at: int) -> FormulateTask:
        """The task of the phase at that place."""
        return replace(self.task, levels=(self.phases[at].level,), scaffold=self.phases[at].scaffold)

    def examples(self, at: int) -> list[Example]:
        """The problems that the phase trains on. Raises ValueError if the task has fewer."""
        return self.asked(at).examples("train", self.questions, 0)

    def problems(
        self, writer: Model | None, path: Path, judge: Judging | None = None
    ) -> tuple[list[list[Example]], float]:
        """What each phase trains on, told anew by the writer where there is one (`FormulateTask.retold`, with `path`
        and judge), and the share of problems whose new words passed the checks."""
        own = [self.examples(at) for at in range(len(self.phases))]
        if writer is None:
            return own, 0.0
        told = [self.asked(at).retold(writer, examples, path, judge) for at, examples in enumerate(own)]
        pairs = zip(chain.from_iterable(own), chain.from_iterable(told), strict=True)
        return told, fmean(before.question != after.question for before, after in pairs)

    def advance(self, at: int, policy: Model, arm: Run, turn: int, seed: int) -> int:
        """The place of the phase in which training goes on after this turn: the next one, or the same.

        Logs, by turn: `phase`, the place that was trained; of the next phase's problems the share with a right one
        among k rollouts, by structure (`pass_at_k`) and by value (`value_pass_at_k`); and whether it `moved`. All of
        it stands in the arm's curriculum.jsonl, which a resumed run reads instead of drawing again.
        """
        path = arm.dir / "curriculum.jsonl"
        known = {line["turn"]: line for _, line in read_lines(path)}
        if turn not in known:
            found = {"phase": float(at)} | (self._ahead(at + 1, policy, seed) if at + 1 < len(self.phases) else {})
            known[turn] = found | {"turn": turn, "moved": float(found.get("pass_at_k", 0) > 0)}
            arm.step({key: value for key, value in known[turn].items() if key != "turn"}, turn)
            append_line(path, known[turn])
        return at + int(known[turn]["moved"])

    def _ahead(self, at: int, policy: Model, seed: int) -> dict[str, float]:
        task, examples = self.asked(at), self.examples(at)
        groups = sample_groups(policy, task, examples, self.k, replace(task.sampling, seed=seed))
        values = [any(task.correct(a, e.gold) for a in g.answers) for e, g in zip(examples, groups, strict=True)]
        return {"pass_at_k": fmean(map(any, task.right_models(groups))), "value_pass_at_k": fmean(values)}
