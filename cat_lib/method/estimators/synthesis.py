"""Synthesis, the paper's estimator: the frozen anchor reads a group's rollouts and writes one reference.

`s ~ pi_0(. | p_syn, o_1..o_G)` (section 3.1, eq. 1): question-blind by default. The paper's prompts are not public;
`prompts/synthesis_*.txt` are this library's own wording of what the text fixes. What the paper leaves open is
settled here: greedy decoding, rollouts in sampled order, and over-long groups cut as `fit` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cat_lib.method.estimators.voting import first
from cat_lib.models.chat import fitted
from cat_lib.schema import Completion, Estimator, Group, Lost, Model, Prompt, Reference, Sampling, Task
from cat_lib.tasks.answers import boxes

# `_b` and `_c` are other wordings, for the ablation of the prompt
KINDS = (
    *("reasoning", "reasoning_b", "reasoning_c", "freeform"),
    *("few_shot", "few_shot_b", "few_shot_c", "few_shot_freeform", "few_shot_model"),
)


def synthesis(anchor: Model, task: Task, kind: str | None = None, include_question: bool = False) -> Estimator:
    """An estimator that asks `anchor` once a group, greedily, all groups in one batch, at the length of a rollout.

    `kind` is the prompt, one of KINDS; without one, the task's. A synthesis may quote what attempts have boxed, so that
    its answer is in the last of its boxes. A group whose synthesis has no answer that the task extracts gets a
    Reference with `answer=None`. Raises ValueError for a kind that is not in KINDS.
    """
    kind, max_new_tokens = kind or task.synthesis_prompt, task.sampling.max_new_tokens
    if kind not in KINDS:
        raise ValueError(f"synthesis prompt {kind!r}: allowed are {', '.join(KINDS)}")
    stop = task.sampling.stop if kind == "few_shot_model" else ("\n",) if kind.startswith("few_shot") else ()
    sampling = Sampling(max_new_tokens, temperature=0, stop=stop)

    def reference(group: Group, completion: Completion) -> Reference:
        *quoted, last = boxes(completion.text) or [""]
        concluded = replace(completion, text=rf"\boxed{{{last}}}") if quoted else completion
        answer = task.extract(concluded, group.question)
        return Reference(completion.text.strip(), None if isinstance(answer, Lost) else answer, "synthesis")

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        prompts = [synthesis_prompt(anchor, group, kind, max_new_tokens, include_question) for group in groups]
        return [reference(g, c) for g, (c,) in zip(groups, anchor.generate(prompts, 1, sampling), strict=True)]

    return estimate


@dataclass(frozen=True)
class OfFirst:
    """The same estimator shown the first rollout of each group alone: no other has to be drawn for it."""

    estimator: Estimator

    def __call__(self, groups: Sequence[Group]) -> list[Reference | None]:
        return self.estimator(first(groups, 1))


def synthesis_prompt(anchor: Model, group: Group, kind: str, max_new_tokens: int, include_question: bool) -> Prompt:
    """What the anchor reads: the rollouts numbered and fenced, cut so that prompt and answer fit its context.

    A chat for `reasoning` and `freeform`; plain text, one line a rollout, for the `few_shot` kinds.
    """
    question = group.question if include_question else ""
    return fitted(anchor, max_new_tokens, f"synthesis_{kind}", [r.text for r in group.rollouts], question=question)
