"""The transformers engine: rollouts that share their prompt pay for it once.

`generate` runs the prefix common to all prompts once, each prompt's own rest once, and expands the key-value cache to
the n samples. One uniform number is drawn per sample and position before decoding, so what is sampled does not depend
on how the batch was split. `score` does the same for many short continuations of one long text, as a judge asks for.

Left out: beam search, penalties, multi-token stop strings, speculative decoding. On GPUs vLLM does more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch

from cat_lib.ledger import clock
from cat_lib.models import ADVICE, ModelError, passes
from cat_lib.models.attention import fits_window
from cat_lib.models.chat import Counted, Rows, Speaker
from cat_lib.schema import Completion, Prompt, Sampling

if TYPE_CHECKING:
    from cat_lib.models.vllm import VLLMModel


@dataclass
class LocalModel(Speaker):
    """A causal model and its tokenizer, in one role.

    A policy's `model` has a LoRA adapter; `initial` are the same weights in memory without it. What policies there
    are on these weights is known to all of them, by name.
    """

    model: Any
    engine: str = "transformers"  # "unsloth" or "unsloth_4bit" where Unsloth made the model
    batch_tokens: int = 16_384  # most key-value positions alive at once
    initial: Any = None
    sampler: VLLMModel | None = None  # generates in its place

    @property
    def plainly(self) -> bool:
        """Whether the model is transformers' own in all but its loading, so that our passes and trainer suit it.

        On a GPU Unsloth puts kernels of its own into the model and into TRL's trainer, which then makes the rollouts.
        """
        return self.engine == "transformers" or self.model.device.type == "cpu"

    @property
    def plain(self) -> Any:
        """The transformers model without an adapter."""
        return self.model if self.initial is None else self.initial

    @property
    def parameters(self) -> int:
        """Parameters that a token of text passes through; the LoRA adapter, below a percent, is not counted."""
        parts = self.plain.get_decoder(), self.plain.get_output_embeddings()
        each = {id(p): p for part in parts for p in part.parameters()}.values()
        # of two 4-bit weights in one byte, both
        return sum(math.prod(getattr(p, "quant_state", p).shape) for p in each)

    @property
    def context(self) -> int:
        """Positions the model was built for. Raises ModelError if its config does not say."""
        if positions := getattr(self.model.config.get_text_config(), "max_position_embeddings", None):
            return min(int(positions), self.sampler.context) if self.sampler else int(positions)
        known = "its config has no max_position_embeddings: nothing says what fits"
        raise ModelError(f"model={self.name!r}: {known}; {ADVICE}")

    @property
    def identity(self) -> str:
        """Name, dtype and a digest over one number of each frozen tensor: what a cache of its answers is keyed by.

        Raises ValueError for a policy with an adapter, whose answers change while it trains.
        """
        if self.initial is not None:
            raise ValueError("a policy in training can't be cached; judge with its anchor()")
        sample = torch.stack([p.detach().flatten()[p.numel() // 2].float().cpu() for p in self.model.parameters()])
        digest = hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]
        return f"{self.name} {self.model.dtype} {digest}{' thinking' * self.thinking}{' vllm' * bool(self.sampler)}"

    def anchor(self, role: str = "anchor") -> LocalModel:
        """The frozen initial model: the same weights in memory, no adapter, costs booked under `role`."""
        return replace(self, role=role, model=self.plain, initial=None)

    def adapter(self, name: str) -> LocalModel:
        """The policy that `add_lora` last made on these weights under this name. ModelError if there is none."""
        if name not in self.policies:
            known, advice = ", ".join(sorted(self.policies)) or "none yet", f"add_lora(model, name={name!r})"
            raise ModelError(f"adapter {name!r}: {self.name!r} has {known}; make it with {advice}")
        return replace(self, role=name, model=self.policies[name], initial=self.plain)

    @property
    def ends(self) -> set[int]:
        """The model's own tokens that end an answer."""
        own = self.model.generation_config.eos_token_id
        return {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, seeded: the same call gives the same completions.

        Raises ValueError if a prompt is empty or does not fit the context with `max_new_tokens`.
        """
        if not prompts:
            return []
        if self.sampler:
            return self.sampler.drawing_for(self).generate(prompts, n, sampling)
        start, ids = clock(), self.fitting(prompts, sampling)
        lengths = [len(i) for i in ids]
        longest = max(lengths) + sampling.max_new_tokens
        stop_ids, after = self.stop_ids(sampling.stop), partial(self.after, sampling=sampling)
        generator = torch.Generator().manual_seed(sampling.seed)
        uniform = torch.rand(len(ids), n, sampling.max_new_tokens, generator=generator)
        results: list[list[Completion]] = [[] for _ in ids]
        with self.working():
            shared = passes.opening(self.model, ids, longest)
            computed = prefix = shared.get_seq_length()
            for batch in passes.batches(lengths, n, sampling.max_new_tokens, self.batch_tokens):
                own = [ids[i][prefix:] for i in batch]
                filled = passes.prefill(self.model, own, shared)
                rows, steps = passes.decode(self.model, filled, uniform[batch], sampling, stop_ids, after)
                computed += sum(map(len, own)) + steps
                for row, (tokens, sums, foreign) in enumerate(rows):
                    i = batch[row // n]
                    read = self.read(prompts[i], self.decode(tokens), tokens, sampling)
                    given = sum(stop - at for at, stop in foreign)
                    logprob, entropy, certainty = (total / (len(tokens) - given) for total in sums)
                    told = replace(read, mean_logprob=logprob, mean_entropy=entropy, self_certainty=certainty)
                    results[i].append(replace(told, foreign=tuple(foreign)))
        masks = [c.mask for group in results for c in group]
        answered = sum(map(sum, masks))  # what a tool put in was read, as a prompt is
        self.book(n * sum(lengths) + sum(map(len, masks)) - answered, answered, computed, start)
        return results

    def scored(self, rows: Rows, words: list[int]) -> Counted:
        """In one pass over trees, where no window is passed."""
        longest = max((len(head) + max(map(len, tails)) for head, tails in rows), default=0)
        if not fits_window(self.model.config, longest):  # a tree's mask knows none: each branch is a row of its own
            pairs = [(head, tail) for head, tails in rows for tail in tails]
            asked = [([*h, *t], [w]) for h, t in pairs for w in words] if words else pairs
            logps, computed = self.following([h for h, _ in asked], [t for _, t in asked])
            found = iter(logps)
            return [[next(found)[0] for _ in words] if words else [fmean(next(found))] for _ in pairs], computed
        with self.working():
            shared = passes.opening(self.model, [head for head, _ in rows], longest)
            prefix, results = shared.get_seq_length(), [list[list[float]]() for _ in rows]
            rows = [(head[prefix:], tails) for head, tails in rows]
            lengths = [len(head) + sum(map(len, tails)) for head, tails in rows]
            # small batches: over rows this long, padding costs more than batching gains
            for batch in passes.batches(lengths, 1, 0, self.batch_tokens // 16):
                numbers = passes.trees(self.model, [rows[i] for i in batch], shared, words)
                for i, own in zip(batch, numbers, strict=True):
                    results[i] = own
        return list(chain.from_iterable(results)), prefix + sum(lengths)

    def following(self, heads: Sequence[list[int]], tails: Sequence[list[int]], temperature: float = 1.0) -> Counted:
        """`logprobs` of token ids, and how many tokens went through the weights."""
        rows = [head + tail for head, tail in zip(heads, tails, strict=True)]
        lengths, results = list(map(len, rows)), list[list[float]]([] for _ in rows)
        longest = max(lengths, default=0)
        if longest > self.context:
            raise ValueError(f"prompt and text take {longest} tokens; the context has {self.context}")
        with self.working():
            shared = passes.opening(self.model, heads, longest)
            prefix = shared.get_seq_length()
            for batch in passes.batches(lengths, 1, 0, self.batch_tokens // 4):
                keep = max(len(tails[i]) for i in batch) + 1
                own = [rows[i][prefix:] for i in batch]
                logits = passes.prefill(self.model, own, shared, keep)[0].float()
                logp = logits.div_(temperature).log_softmax(-1)
                for row, i in zip(logp, batch, strict=True):
                    tail = torch.tensor(tails[i], dtype=torch.long, device=logp.device)
                    results[i] = row[-len(tail) - 1 : -1].gather(-1, tail[:, None])[:, 0].tolist()
        return results, prefix + sum(lengths) - prefix * len(rows)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Without gradients and dropout, also where the model is in training."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)
