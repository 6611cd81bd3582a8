"""The arms of a rubric experiment: one policy trained by each source of rubrics, everything else the same.

Anchor and judge are the policy's own weights unless another judge is named, so they are made anew for each arm's
adapter. Held-out scores use the given criteria, which no arm but `physician` trains on. One number in every arm's
reward comes from labels: the judge's threshold, set on labelled pairs of training conversations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cat_lib.learning.grpo import Trained, add_lora, train
from cat_lib.learning.settings import GRPOSettings
from cat_lib.ledger import Cost
from cat_lib.measuring.audit import Audit, audit, calibrate, clinic_pairs
from cat_lib.measuring.evaluation import sample_groups
from cat_lib.measuring.scoring import RubricScore, judged
from cat_lib.method.estimators.synthesis import synthesis
from cat_lib.method.estimators.voting import none
from cat_lib.method.judge import Judge, open_judge_model
from cat_lib.method.rewards.proposals import Proposal, Proposer
from cat_lib.method.rewards.rubric import ARMS, LengthPenalty, RubricReward, from_reference, needs_reference, rubrics_of
from cat_lib.models.cache import Cache
from cat_lib.runs.folder import Run
from cat_lib.runs.parameters import Parameters
from cat_lib.runs.places import ROOT
from cat_lib.schema import Estimator, Example, Model, Sampling
from cat_lib.tasks.healthbench import HealthTask, fitting


@dataclass(frozen=True)
class Arm:
    """What one arm left: its training, its held-out score, and the training's cost by role."""

    trained: Trained
    score: RubricScore
    costs: dict[str, Cost]


@dataclass(frozen=True)
class Study:
    """What all arms share. `p` are the parameters of the notebook `03_cat_rl_rubrics`, by their names."""

    task: HealthTask
    train_set: Sequence[Example]
    heldout: Sequence[Example]
    p: Parameters
    threshold: float = 0.0

    @classmethod
    def of(cls, task: HealthTask, model: Model, p: Parameters) -> tuple[Study, dict[str, int]]:
        """The study of `p`, with conversations cut to the model's context, and the turns that each cut one lost.

        Raises ValueError for an arm that does not exist or stands twice, before anything is computed.
        """
        wrong = [arm for arm in p.arms if arm not in ARMS or p.arms.count(arm) > 1]
        if wrong or not p.arms:
            raise ValueError(
                f"arms={p.arms}: allowed are {', '.join(ARMS)}, each once; look at {wrong or 'an empty list'}"
            )
        new = task.sampling.max_new_tokens
        train_set, lost = fitting(task.examples("train", None, p.seed), model, new)
        heldout, lost_heldout = fitting(task.examples("heldout", p.heldout_questions, 0), model, new)
        return cls(task, train_set, heldout, p), lost | lost_heldout

    def judge(self, anchor: Model) -> Judge:
        """The judge of an arm: the anchor's own weights, or the model that `judge` names.

        What an endpoint has answered once is kept in results/judge_cache.db, for all runs; a local judge is not
        cached, so that its cost is what a run measures.
        """
        paid = self.p.judge.startswith("endpoint:")
        model = open_judge_model(self.p.judge, anchor, **({"prices": self.p.prices} if paid else {}))
        cache = Cache(ROOT / "results" / "judge_cache.db") if paid else None
        return Judge(model, self.p.judge_prompt, self.threshold, cache=cache)

    def calibrated(self, anchor: Model) -> tuple[Study, Audit]:
        """The study with the judge's threshold set on our labelled pairs, and the judge's audit on the others."""
        to_calibrate, to_audit = (pairs[: self.p.audit_pairs] for pairs in clinic_pairs())
        judge = calibrate(self.judge(anchor), to_calibrate)
        return replace(self, threshold=judge.threshold), audit(judge, to_audit)

    def proposer(self, anchor: Model, seed: int) -> Proposer:
        """Who writes rubrics: the anchor, its criteria checked by the arm's judge."""
        return Proposer(
            anchor,
            self.task.rubric_prompt,
            self.judge(anchor),
            self.p.points,
            attempts=2,  # of `rubric_replies` each
            replies=self.p.rubric_replies,
            sampling=Sampling(self.p.rubric_tokens, 0.7, top_k=50, top_p=0.95, seed=seed),
        )

    def teacher(self, anchor: Model) -> Estimator:
        """Synthesis, at the length of a response."""
        return synthesis(anchor, self.task)

    def rule(self, arm: str, anchor: Model, folder: Path) -> RubricReward:
        """The reward rule of an arm that is trained in `folder`."""
        penalty = LengthPenalty(self.p.length_limit, self.p.length_penalty, self.p.length_reading)
        rubrics = rubrics_of(arm, self.proposer(anchor, self.p.seed), self.train_set, folder)
        return RubricReward(self.judge(anchor), rubrics, penalty, self.p.max_failed)

    def evaluate(self, policy: Model) -> RubricScore:
        """The policy on the held-out questions, the same draws for every policy."""
        sampling = replace(self.task.sampling, seed=1)
        groups = sample_groups(policy, self.task, self.heldout, self.p.heldout_samples, sampling)
        return judged(self.heldout, groups, self.judge(policy.anchor()))

    def probe(self, policy: Model, seed: int) -> list[Proposal]:
        """Rubrics that the anchor writes from references to this policy's rollouts, on a few held-out questions."""
        sampling = replace(self.task.sampling, seed=seed)
        questions, anchor = self.heldout[: self.p.probe_questions], policy.anchor()
        groups = sample_groups(policy, self.task, questions, self.p.group_size, sampling)
        return from_reference(self.proposer(anchor, seed))(groups, self.teacher(anchor)(groups))

    def train(self, arm: str, model: Model, run: Run) -> tuple[Arm, Model]:
        """Train a fresh adapter on `model` by the arm's reward, in a part of the run; returns the policy too."""
        policy = add_lora(model, self.p.lora_rank, self.p.seed)
        anchor = policy.anchor()
        part = run.part(arm)
        rule, settings = self.rule(arm, anchor, part.dir), GRPOSettings.of(self.p.values)
        estimator = self.teacher(anchor) if needs_reference(arm) else none
        trained = train(policy, self.task, self.train_set, estimator, rule, settings, part)
        return Arm(trained, self.evaluate(policy), trained.spent), policy
