"""Which engines learn and draw, and is what learns the policy that is sampled? A training whose outcome is known.

`sampler.samples_the_policy` asks the other half, and before every training whose sampler is not its learner.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

from cat_lib.learning.grpo import add_lora, train
from cat_lib.learning.sampler import PolicyError, samples_the_policy
from cat_lib.learning.settings import GRPOSettings
from cat_lib.method.estimators.voting import none
from cat_lib.models import ModelError, load_model
from cat_lib.models.memory import gpus
from cat_lib.runs.folder import Run, read_config
from cat_lib.runs.parameters import Parameters
from cat_lib.schema import Group, Model, Reference
from cat_lib.tasks.arithmetic import Arithmetic

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel


def learner(p: Parameters, run: Run) -> Model:
    """The model that `p` names, in the engines that it names; engine=auto takes the fastest that can be trusted here.

    That is, on a GPU with both, Unsloth with rollouts by vLLM, if a random adapter shows that vLLM draws from what
    learns; else transformers. What was taken is printed, and kept as a tag, which a resumed run goes by.
    """
    if p.engine != "auto":
        return load_model(p.model, p.engine, p.thinking, p.rollouts)
    known = read_config(run.dir).get("tags", {}).get("engines", "").split()
    able = gpus() and find_spec("unsloth") and find_spec("vllm")
    fast, plain = ("unsloth", "vllm" if p.rollouts == "engine" else p.rollouts), ("transformers", p.rollouts)
    for engine, rollouts in [tuple(known)] if known else [fast, plain] if able else [plain]:
        model: Any = None
        try:
            model = load_model(p.model, engine, p.thinking, rollouts)
            if (engine, rollouts) == fast:
                samples_the_policy(model, [e.prompt for e in Arithmetic().examples("train", 4, 0)])
            break
        except ModelError as error:
            if (engine, rollouts) != fast or known:
                raise
            print(f"engine=auto: not {engine}, {error}", flush=True)
            if model:
                model.sampler.close()
    print(f"engine=auto: learns {engine}, draws {'the same' if rollouts == 'engine' else rollouts}", flush=True)
    p.values |= {"engine": engine, "rollouts": rollouts}
    run.parameters(p.values)
    run.tag("engines", f"{engine} {rollouts}")
    return cast("Model", model)


def learns_the_policy(model: LocalModel) -> tuple[float, float]:
    """Mean length of rollouts, in characters, before and after two steps whose reward is to be short.

    Raises PolicyError if they have not become shorter: what is learnt, or what samples, is another policy.
    """
    task = Arithmetic()
    examples = task.examples("train", 8, 0)
    policy = add_lora(model, 8, 0, "canary")

    def length() -> float:
        groups = policy.generate([e.prompt for e in examples], 8, task.sampling)
        return fmean(len(c.text) for group in groups for c in group)

    def short(groups: Sequence[Group], _: Sequence[Reference | None]) -> list[list[float | None]]:
        return [[-float(len(c.text)) for c in group.rollouts] for group in groups]

    before = length()
    settings = GRPOSettings(2, 8, 8, 4, 1e-3, beta=0.0, lora_rank=8)
    with tempfile.TemporaryDirectory() as folder:
        trained = train(policy, task, examples, none, short, settings, Run(Path(folder)))
    if trained.history["zero_variance"].min() == 1:
        raise ModelError(f"{model.name!r} answers each question in one length: nothing to learn; take another model")
    after = length()
    model.policies.pop("canary", None)
    if not after < before:
        raise PolicyError(
            f"two steps for short answers took their mean length from {before:.1f} to {after:.1f} characters: "
            "what learns is not what samples"
        )
    return before, after
