"""HealthBench's embedded twin: 44 short health conversations with 267 criteria of our own, in its format.

Four themes (emergencies, missing context, hedging, communication), 24 conversations to train on and 20 held out. The
guidance is general and made for testing software; it has not been reviewed by a physician, and what a small model
answers here is often wrong. `clinic_audit.jsonl` holds one response to each conversation, mixed on purpose (some of
its advice is bad), with six known verdicts: stated or paraphrased by the response, absent from it, or negated.

Prompts are plain text with two answered questions: the embedded model follows examples rather than instructions.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cat_lib.schema import Sampling
from cat_lib.tasks.healthbench import HealthTask, load_health

ROWS = Path(__file__).with_name("clinic.jsonl")
AUDIT = Path(__file__).with_name("clinic_audit.jsonl")
SAMPLING = Sampling(64, temperature=0.8, top_k=50, top_p=0.95, stop=("\n",))


def clinic() -> HealthTask:
    """The task, with the prompt kinds that the embedded model can follow."""
    return replace(
        load_health(ROWS),
        name="clinic",
        heldout=20,
        validation=0,
        synthesis_prompt="few_shot_freeform",
        rubric_prompt="few_shot",
        judge_prompt="likelihood",
        sampling=SAMPLING,
        few_shot="clinic_few_shot",
    )
