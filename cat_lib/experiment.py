"""What the numbered experiments share: the opening of a run, and one arm of training.

An experiment has one task whose answers can be checked, one model, and questions that no arm trains on (or, where the
task is transductive, the ones it trains on, as the paper does for MATH-500). The rubric experiments have `arms.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cat_lib.learning.grpo import Trained, add_lora, train
from cat_lib.learning.settings import GRPOSettings, draw_as
from cat_lib.learning.sft import SFTSettings, Tuned, finetune, kept_references
from cat_lib.ledger import Cost
from cat_lib.measuring.evaluation import Evaluation, evaluate, sample_groups
from cat_lib.method.estimators import voting
from cat_lib.method.estimators.likelihood import min_ppl, mutual_predictability, self_bon
from cat_lib.method.estimators.synthesis import KINDS, of_first, synthesis
from cat_lib.method.rewards.verifiable import verifiable
from cat_lib.models import load_model
from cat_lib.runs import tracking
from cat_lib.runs.parameters import Parameters
from cat_lib.schema import Estimator, Example, Group, Model, Task
from cat_lib.suites import preflight
from cat_lib.tasks import load_task
from cat_lib.tasks.arithmetic import LenientArithmetic

# what a parameter `estimators` may name; each is made of the anchor, the task, the golds by question, and synthesis'
# own options
_ESTIMATORS: dict[str, Callable[..., Estimator]] = {
    "single": lambda anchor, task, golds: voting.single,
    "majority": lambda anchor, task, golds: voting.majority,
    "self_bon": lambda anchor, task, golds: self_bon(anchor, task.synthesis_prompt),
    "min_ppl": lambda anchor, task, golds: min_ppl(anchor),
    "mutual_predictability": lambda anchor, task, golds: mutual_predictability(anchor),
    "synthesis_1": lambda anchor, task, golds: of_first(synthesis(anchor, task)),
    "synthesis": lambda anchor, task, golds, **options: synthesis(anchor, task, **options),
    "gold": lambda anchor, task, golds: voting.gold(golds),
}


@dataclass
class Arm:
    """One trained policy: its training (GRPO's or SFT's), what it cost by role, and its score after."""

    trained: Trained | Tuned
    spent: dict[str, Cost]
    after: Evaluation


@dataclass
class Experiment:
    """The open run of a notebook. `model` is the policy; training replaces it, and with it the anchor."""

    p: Parameters
    run: tracking.Run
    task: Task
    model: Model
    heldout: list[Example]

    @classmethod
    def open(cls, notebook: str, p: Parameters) -> Experiment:
        """Refuse what can't work, open the run, load task and model, in this order.

        Raises ValueError for parameters that can't work together (no or repeated seeds, unknown estimators, a task
        without checkable answers), ModelError for a model that this machine can't hold, before anything is loaded.
        """
        check(p)
        preflight.require(p)
        task = load_task(p.task, p.data, p.split == "transductive", p.skip_bad_rows)
        if not task.verifiable:
            raise ValueError(f"task={p.task!r} has no answers that can be checked; take arithmetic or a math task")
        task = draw_as(task, p.values)
        heldout = task.examples("heldout", p.questions, 0)
        if "steps" in p.values:
            task.examples("train", p.train_questions, 0)
        run = tracking.start_run(notebook, p.given)
        run.parameters(p.values)
        run.update_config(skipped_rows=task.skipped)
        run.dataset("heldout", heldout, task.name)
        return cls(p, run, task, load_model(p.model, thinking=p.thinking), heldout)

    @property
    def golds(self) -> dict[str, str]:
        """Right answers by question id, for the upper bound and for plots."""
        return {e.id: e.gold for e in self.heldout}

    def estimators(self, names: Sequence[str], anchor: Model | None = None, **options: Any) -> dict[str, Estimator]:
        """Estimators for held-out questions, read by `anchor` or the untrained model."""
        reader = anchor or self.model.anchor()
        return {name: _ESTIMATORS[name](reader, self.task, self.golds, **options) for name in names}

    def rollouts(self, n: int, seed: int, examples: Sequence[Example] | None = None, **sampling: Any) -> list[Group]:
        """n rollouts of each held-out question, or of `examples`; `sampling` changes how they are drawn."""
        how = replace(self.task.sampling, seed=seed, **sampling)
        return sample_groups(self.model, self.task, self.heldout if examples is None else examples, n, how)

    def evaluate(self, names: Sequence[str], seed: int) -> Evaluation:
        """The policy as it is now on the held-out questions. Rollouts of one seed are the same for all methods."""
        by_name = self.estimators([n for n in names if n != "single"]) if set(names) - {"single"} else {}
        found = evaluate(self.model, self.task, self.heldout, self.p.group_size, by_name, seed + 1)
        return replace(found, seed=seed)

    def fresh(self, seed: int) -> Any:
        """Replace the policy by the untrained model with a fresh adapter, and return it."""
        self.model = add_lora(self.model, self.p.lora_rank, seed)
        return self.model

    def train_set(self, seed: int) -> list[Example]:
        """The training questions of a seed."""
        return self.task.examples("train", self.p.train_questions, seed)

    def grpo(self, estimator: str, seed: int, after: Sequence[str] = ("majority", "synthesis")) -> Arm:
        """Train a fresh policy on one estimator's references and score it."""
        trained = self.train(estimator, seed)
        return Arm(trained, trained.spent, self.evaluate(after, seed))

    def train(self, estimator: str, seed: int) -> Trained:
        """Train a fresh policy on one estimator's references. It stays as `model` until the next arm.

        `gold` trains on the right answers, the upper bound; no other estimator is given them.
        """
        policy, questions = self.fresh(seed), self.train_set(seed)
        golds = {e.id: e.gold for e in questions} if estimator == "gold" else {}
        teacher = _ESTIMATORS[estimator](policy.anchor(), self.task, golds)
        settings = GRPOSettings.of(self.p.values, seed=seed)
        part = self.run.part(f"{estimator}_{seed}")
        return train(policy, self.task, questions, teacher, verifiable, settings, part)

    def lesson(self, seed: int) -> Trained:
        """How a reward without labels collapses: majority vote on answers that are read carelessly.

        Always on `LenientArithmetic`, with settings of its own that show it in six steps: no KL term, a high
        learning rate. Nothing is scored after; its own `rollout_accuracy` is the result.
        """
        policy, task = self.fresh(seed), LenientArithmetic()
        settings = GRPOSettings(
            steps=6,
            group_size=8,
            prompts_per_step=8,
            prompts_per_micro_batch=4 if self.p.prompts_per_micro_batch >= 4 else 1,
            learning_rate=3e-4,
            beta=0.0,
            lora_rank=self.p.lora_rank,
            seed=seed,
        )
        questions, part = task.examples("train", 90, seed), self.run.part("lesson")
        return train(policy, task, questions, voting.majority, verifiable, settings, part)

    def sft(self, estimator: str, seed: int, after: Sequence[str] = ("majority", "synthesis")) -> Arm:
        """CaT-SFT: references of the training questions by the untrained model, then cross-entropy on them."""
        policy, questions = self.fresh(seed), self.train_set(seed)
        teacher = _ESTIMATORS[estimator](policy.anchor(), self.task, {})
        settings = SFTSettings(self.p.sft_epochs, learning_rate=self.p.sft_learning_rate, seed=seed)
        part, n = self.run.part(f"sft_{seed}"), self.p.group_size
        references, made = kept_references(part, policy.ledger, lambda: teacher(self.rollouts(n, seed, questions)))
        tuned = finetune(policy, self.task, questions, references, settings, part)
        return Arm(tuned, made | tuned.spent, self.evaluate(after, seed))


def check(p: Parameters) -> None:
    """Raises ValueError for parameters that can't work together, before anything is loaded."""
    preflight.check(p)
    v = p.values
    for names in (v.get("estimators", ["single"]), [v.get("teacher", "single")]):
        wrong = [n for n in names if n not in _ESTIMATORS or list(names).count(n) > 1]
        if wrong or not names:
            allowed = ", ".join(_ESTIMATORS)
            raise ValueError(
                f"estimators={list(names)}: allowed are {allowed}, each once; look at {wrong or 'an empty list'}"
            )
    if wrong := [w for w in v.get("wordings") or [] if w not in KINDS]:
        raise ValueError(f"wordings={p.wordings}: allowed are {', '.join(KINDS)}; look at {wrong}")
    if "steps" in v:
        GRPOSettings.of(v)
