"""Synthesis, the paper's estimator: the frozen anchor reads a group's rollouts and writes one reference.

`s ~ pi_0(. | p_syn, o_1..o_G)` (section 3.1, eq. 1): question-blind by default. The paper's prompts are not public;
`prompts/synthesis_*.txt` are this library's own wording of what the text fixes. What the paper leaves open is
settled here: greedy decoding, rollouts in sampled order, and over-long groups cut as `fit` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cat_lib.method.estimators.voting import first
from cat_lib.models.chat import fitted
from cat_lib.prompts import fence, fill, one_line
from cat_lib.schema import Completion, Estimator, Group, Lost, Model, Prompt, Reference, Sampling, Task
from cat_lib.tasks.answers import boxes

# `_b` and `_c` are other wordings, for the ablation of the prompt
KINDS = (
    *("reasoning", "reasoning_b", "reasoning_c", "freeform"),
    *("few_shot", "few_shot_b", "few_shot_c", "few_shot_freeform"),
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
    sampling = Sampling(max_new_tokens, temperature=0, stop=("\n",) if kind.startswith("few_shot") else ())

    def estimate(groups: Sequence[Group]) -> list[Reference | None]:
        prompts = [synthesis_prompt(anchor, group, kind, max_new_tokens, include_question) for group in groups]
        completions = [c for (c,) in anchor.generate(prompts, 1, sampling)]
        answers = [task.extract(_concluded(c), group.question) for group, c in zip(groups, completions, strict=True)]
        return [
            Reference(completion.text.strip(), None if isinstance(answer, Lost) else answer, "synthesis")
            for completion, answer in zip(completions, answers, strict=True)
        ]

    return estimate


def of_first(estimator: Estimator) -> Estimator:
    """The same estimator shown the first rollout of each group alone."""
    return lambda groups: estimator(first(groups, 1))


def _concluded(completion: Completion) -> Completion:
    """The completion with no box but the last."""
    *quoted, last = boxes(completion.text) or [""]
    return replace(completion, text=rf"\boxed{{{last}}}") if quoted else completion


def synthesis_prompt(
    anchor: Model, group: Group, kind: str, max_new_tokens: int, include_question: bool = False
) -> Prompt:
    """What the anchor reads: the rollouts numbered and fenced, cut so that prompt and answer fit its context.

    A chat for `reasoning` and `freeform`; plain text, one line a rollout, for the `few_shot` kinds.
    """
    shots = kind.startswith("few_shot")

    def build(texts: Sequence[str]) -> Prompt:
        block, wrap = ("\n", one_line) if shots else ("\n\n", lambda text: "\n" + fence(text))
        rollouts = block.join(f"{i}. {wrap(text)}" for i, text in enumerate(texts, 1))
        question = group.question if include_question else ""
        text = fill(f"synthesis_{kind}", rollouts=rollouts, count=str(len(texts)), question=question)
        return text if shots else [{"role": "user", "content": text.strip()}]

    return fitted(anchor, [r.text for r in group.rollouts], build, max_new_tokens)
