"""The vLLM engine, in this process: samples, log-probabilities and scores by one copy of the weights.

The policy is a LoRA adapter, the anchor the model without it, both on one engine. On a GPU vLLM applies the adapter
itself; on a CPU, where that costs ten times as much, it is added to the weights, which are swapped before a call that
needs others. What is sampled depends on the seed and on the prompt's place in the call. Log-probabilities are those of
the distribution that is sampled from.

Left out: entropies, which vLLM does not give (`mean_entropy` is None), and log-probabilities of samples that top-k,
top-p or a form have cut (`mean_logprob` is None: vLLM gives those of what is left). Sliding windows are its matter.
"""

from __future__ import annotations

import hashlib
import math
import operator
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from cat_lib.ledger import clock
from cat_lib.models import ModelError, as_model_error, memory
from cat_lib.models.chat import Counted, Draft, Rows, Speaker
from cat_lib.models.merging import merged, read_adapter, require_fit, shapes
from cat_lib.schema import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel

MAX_RANK = 64  # of an adapter on a GPU; vLLM reserves memory for it
# what add_lora adapts. Without the output layer, which vLLM would wrap so that prompts' log-probabilities fail
_ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
_ROOM = 32_768  # tokens of prompts in one pass on a CPU: a prompt in chunks makes seeds fail there


@dataclass
class VLLMModel(Speaker):
    """A model in vLLM, in one role. `lora` is its adapter: vLLM's request for it, or itself where weights are swapped.

    `policies` are adapters by the policy's name, and `held` is what the weights have in them; all roles share both.
    """

    llm: Any
    parameters: int  # all that its files hold
    lora: Any = None
    held: list[Any] = field(default_factory=lambda: [None], repr=False)

    @property
    def context(self) -> int:
        """Positions that this engine was opened with, less the one that it draws behind a text that is scored."""
        return int(self.llm.llm_engine.model_config.max_model_len) - 1

    @property
    def ends(self) -> set[int]:
        """The model's own tokens that end an answer."""
        own = self.llm.llm_engine.model_config.try_get_generation_config().get("eos_token_id")
        return {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}

    @property
    def identity(self) -> str:
        """Name, dtype and a digest over the stamps of the files of weights: what a cache of its answers is keyed by.

        Raises ValueError for a policy, whose answers change.
        """
        if self.lora is not None:
            raise ValueError("a policy in training can't be cached; judge with its anchor()")
        config = self.llm.llm_engine.model_config
        folder = Path(config.model)
        stamps = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in sorted(folder.glob("*.*"))]
        about = folder.name if folder.parent.name == "snapshots" else stamps  # the hub's cache: its commit
        digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        return f"vllm {self.name} {config.dtype} {digest}{' thinking' * self.thinking}"

    def anchor(self, role: str = "anchor") -> VLLMModel:
        """The frozen initial model on the same engine, no adapter, costs booked under `role`."""
        return replace(self, role=role, lora=None)

    def load(self, folder: Path, name: str = "policy") -> VLLMModel:
        """The policy `name`, whose adapter is in `folder`, read anew. Raises ModelError if it does not fit."""
        from vllm.lora.request import LoRARequest

        adapter = read_adapter(folder)
        if not memory.gpus():
            require_fit(Path(self.llm.llm_engine.model_config.model), adapter)
            self.policies[name] = adapter
            return self.adapter(name)
        if (rank := max(len(a) for _, a in adapter.values())) > MAX_RANK:
            raise ModelError(f"the adapter in {folder} has rank {rank}; allowed is {MAX_RANK} (lora_rank)")
        number = self.policies[name].lora_int_id if name in self.policies else len(self.policies) + 1
        self._wake()
        try:
            self.llm.llm_engine.add_lora(LoRARequest(name, number, str(folder), load_inplace=True))
        except Exception as error:
            said = " ".join(str(error).split())[:200]
            raise ModelError(f"the adapter in {folder} can't be used on {self.name}: {said}") from error
        self.llm.reset_prefix_cache()  # it is keyed by the adapter's name, and would give the old adapter's states
        self.policies[name] = LoRARequest(name, number, str(folder))
        return self.adapter(name)

    def drawing_for(self, model: LocalModel) -> VLLMModel:
        """This engine in the place of `model`, its adapter as it is now: the costs, name and thinking are `model`'s."""
        drawing = replace(self, lora=None)
        if model.initial is not None:
            shared = Path("/dev/shm")  # memory, where there is such a folder, and room in it: a container has 64 MB
            place = shared if shared.is_dir() and shutil.disk_usage(shared).free > 2**30 else None
            with TemporaryDirectory(dir=place) as folder:
                model.model.save_pretrained(folder, save_embedding_layers=False)
                drawing = self.load(Path(folder), model.role)
        return replace(drawing, role=model.role, ledger=model.ledger, thinking=model.thinking)

    def adapter(self, name: str) -> VLLMModel:
        """The policy that was last loaded under this name. ModelError if there is none."""
        if name not in self.policies:
            known = ", ".join(sorted(self.policies)) or "none yet"
            raise ModelError(f"adapter {name!r}: {self.name!r} has {known}; load it with load(folder, {name!r})")
        return replace(self, role=name, lora=self.policies[name])

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, seeded: the same call gives the same completions.

        Raises ValueError if a prompt is empty or does not fit the context with `max_new_tokens`.
        """
        if not prompts:
            return []
        start, ids = clock(), self.fitting(prompts, sampling)
        whole = sampling.top_k == 0 and sampling.top_p == 1 and not sampling.form
        same: dict[str, Any] = {name: getattr(sampling, name) for name in ("form", "temperature", "top_k", "top_p")}
        same |= {"logprobs": 0, "stop_token_ids": sorted(self.stop_ids(sampling.stop))}

        def asked(at: int, n: int, room: int) -> Any:
            return self._asked(n=n, max_tokens=room, seed=sampling.seed * 1_000_003 + at, **same)

        answers = self._run(ids, [asked(i * n, n, sampling.max_new_tokens) for i in range(len(ids))])
        drafts = [Draft(head, *_drawn(one)) for head, own in zip(ids, answers, strict=True) for one in own.outputs]
        going = list(enumerate(drafts))  # each has seeds of its own
        while going := [(at + len(drafts), own) for at, own in going if own.goes_on(self.after(own.ids, sampling))]:
            asks = [asked(at, 1, sampling.max_new_tokens - len(own.ids)) for at, own in going]
            rows = self._run([own.head + own.ids for _, own in going], asks)
            for (_, own), answer in zip(going, rows, strict=True):
                own.ids, own.numbers = map(operator.add, (own.ids, own.numbers), _drawn(answer.outputs[0]))
        results = list[list[Completion]]([] for _ in ids)
        for i, own in enumerate(drafts):
            read = self.read(prompts[i // n], self.decode(own.ids), own.ids, sampling)
            told = replace(read, foreign=tuple(own.foreign), logprobs=tuple(own.numbers))
            mean = fmean(compress(own.numbers, told.mask)) if whole else None
            results[i // n].append(replace(told, mean_logprob=mean))
        answered, tokens = (sum(f(c.mask) for own in results for c in own) for f in (sum, len))
        self.book(n * sum(map(len, ids)) + tokens - answered, answered, sum(map(len, ids)) + tokens, start)
        return results

    def scored(self, rows: Rows, words: list[int]) -> Counted:
        """Words are read from the next token's distribution, which the prefix cache serves.

        A branch's own tokens need a pass over the whole row.
        """
        pairs = [(head, tail) for head, tails in rows for tail in tails]
        if not words:
            own, computed = self.following(*zip(*pairs, strict=True)) if pairs else ([], 0)
            return [[fmean(numbers)] for numbers in own], computed
        asked = [self._asked(temperature=1.0, max_tokens=1, logprob_token_ids=words)] * len(pairs)
        answers = self._run([head + tail for head, tail in pairs], asked)
        found = [[answer.outputs[0].logprobs[0][word].logprob for word in words] for answer in answers]
        return found, sum(len(head) + len(tail) for head, tail in pairs)

    def sleep(self) -> None:
        """Give a learner on the same GPU this engine's memory until it is asked again. Elsewhere nothing happens."""
        if self.llm.llm_engine.vllm_config.model_config.enable_sleep_mode:
            self.llm.sleep(level=1)

    def _wake(self) -> None:
        if self.llm.llm_engine.is_sleeping():
            self.llm.wake_up()

    def close(self) -> None:
        """Give the engine's memory back. The model, in whatever role, can't be used any more."""
        import gc

        from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

        self.llm.llm_engine.engine_core.shutdown()
        self.llm = None
        gc.collect()
        cleanup_dist_env_and_memory()

    def following(self, heads: Sequence[list[int]], tails: Sequence[list[int]]) -> Counted:
        """`logprobs` of token ids, and how many tokens went through the weights."""
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        longest = max(map(len, rows), default=0)
        if longest > self.context:
            raise ValueError(f"prompt and text take {longest} tokens; the context has {self.context}")
        asked = [self._asked(temperature=1.0, max_tokens=1, prompt_logprobs=0)] * len(rows)
        results = []
        for row, tail, answer in zip(rows, tails, self._run(rows, asked), strict=True):
            places = list(zip(row, answer.prompt_logprobs, strict=True))[len(row) - len(tail) :]
            results.append([place[token].logprob for token, place in places])
        return results, sum(map(len, rows))

    def _asked(self, form: str = "", **settings: Any) -> Any:
        from vllm.sampling_params import SamplingParams, StructuredOutputsParams

        held = {"structured_outputs": StructuredOutputsParams(regex=form)} if form else {}
        return SamplingParams(detokenize=False, **held, **settings)

    def _run(self, rows: Sequence[Sequence[int]], asked: Sequence[Any]) -> list[Any]:
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        on_cpu = not memory.gpus()
        try:
            self._wake()
            if on_cpu and self.held[0] is not self.lora:
                self.held[0] = ...  # neither, if this fails halfway
                weights = merged(Path(self.llm.llm_engine.model_config.model), self.lora or {})
                self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
                self.llm.reset_prefix_cache()
                self.held[0] = self.lora
            lora = None if on_cpu else self.lora
            return list(self.llm.generate(prompts, list(asked), use_tqdm=False, lora_request=lora))
        except ValueError:  # what was asked can't be
            raise
        except Exception as error:  # it raises what its parts raise
            said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            raise ModelError(f"vLLM failed on {self.name} ({said}); run it again: a training goes on") from error


def load(name: str, thinking: bool = False, beside: bool = False) -> VLLMModel:
    """The model `name` in an engine of its own, `beside` a learner that needs the GPU's memory too.

    Raises ModelError if vLLM is not installed or can't open it.
    """
    from cat_lib.models import load_tokenizer, preferred_dtype, saved

    on_cpu = not memory.gpus()
    chosen = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # in this process: a kernel that ends takes the engine with it
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(memory.VLLM_CACHE),
    }
    for key, value in chosen.items():
        os.environ.setdefault(key, value)
    try:
        from vllm import LLM
    except ImportError as error:
        raise ModelError(f"engine=vllm: vLLM is not installed here ({error}); `make engines` adds it") from None
    tokenizer = load_tokenizer(name, str(folder := saved(name)))
    own: dict[str, Any] = {"max_model_len": -1}  # as long a context as fits
    if on_cpu:
        own |= {"enforce_eager": True, "max_num_batched_tokens": _ROOM}
    else:
        own |= {"enable_lora": True, "max_lora_rank": MAX_RANK, "lora_target_modules": _ADAPTED}
        own |= {"max_loras": 2, "max_cpu_loras": 8}
        own |= {"enable_sleep_mode": True, "gpu_memory_utilization": 0.45} if beside else {}
    with as_model_error(f"vLLM can't open {name}: "):
        dtype = str(preferred_dtype()).removeprefix("torch.")
        llm = LLM(model=str(folder), dtype=dtype, logprobs_mode="processed_logprobs", **own)
    size = sum(map(math.prod, shapes(folder).values()))
    return VLLMModel(llm, size, tokenizer=tokenizer, name=name, thinking=thinking)


def _drawn(output: Any) -> tuple[list[int], list[float]]:
    """The token ids of one of vLLM's outputs, and the log-probability of each."""
    ids = list(output.token_ids)
    return ids, [place[token].logprob for token, place in zip(ids, output.logprobs, strict=True)]
