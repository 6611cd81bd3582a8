"""The transformers engine: rollouts that share their prompt pay for it once.

A group asks the same question G times and few-shot prompts open alike, so most prompt tokens of a batch are
copies. `generate` runs the prefix common to all prompts once, each prompt's own rest once, and expands the
key-value cache to the n samples. One uniform number is drawn per sample and position before decoding, so what is
sampled does not depend on how the batch was split.

Left out: beam search, penalties, multi-token stop strings, speculative decoding. On GPUs vLLM does more.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from transformers import DynamicCache

from cat_lib.ledger import Ledger, clock
from cat_lib.models.attention import fits_window
from cat_lib.models.chat import render, spoken
from cat_lib.models.draw import draw
from cat_lib.schema import Completion, Prompt, Sampling

MAX_ROWS = 256  # bounds the logits of one decoding step to rows x vocabulary


@dataclass
class LocalModel:
    """A causal model and its tokenizer, in one role. `adapter=False` reads the same weights with LoRA off."""

    model: Any
    tokenizer: Any
    name: str
    role: str = "policy"
    adapter: bool = True
    engine: str = "transformers"  # "unsloth" where Unsloth made the model: TRL then makes the rollouts
    thinking: bool = False  # whether the chat template may let the model think first; the paper has it off
    batch_tokens: int = 16_384  # most key-value positions alive at once
    ledger: Ledger = field(default_factory=Ledger)
    _stops: dict[tuple[str, ...], frozenset[int]] = field(default_factory=dict, repr=False)

    @property
    def parameters(self) -> int:
        """Parameters that a token of text passes through; the LoRA adapter, below a percent, is not counted."""
        parts = self.model.get_decoder(), self.model.get_output_embeddings()
        own = {id(p): p.numel() for part in parts for n, p in part.named_parameters() if "lora_" not in n}
        return sum(own.values())

    @property
    def context(self) -> int:
        """Positions the model was built for. Raises ValueError if its config does not say."""
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        if positions is None:
            raise ValueError(f"model={self.name!r}: its config has no max_position_embeddings: nothing says what fits")
        return int(positions)

    def anchor(self, role: str = "anchor") -> LocalModel:
        """The frozen initial model: the same weights in memory, adapter off, costs booked under `role`."""
        return replace(self, role=role, adapter=False)

    @property
    def identity(self) -> str:
        """Name, dtype and a digest over one number of each frozen tensor: what a cache of its answers is keyed by.

        Raises ValueError for a policy with an adapter, whose answers change while it trains.
        """
        tensors = {n: p for n, p in self.model.named_parameters() if "lora_" not in n}
        if self.adapter and len(tensors) < sum(1 for _ in self.model.named_parameters()):
            raise ValueError("a policy in training can't be cached; judge with its anchor()")
        sample = torch.stack([p.detach().flatten()[p.numel() // 2].float().cpu() for p in tensors.values()])
        digest = hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]
        return f"{self.name} {self.model.dtype} {digest}{' thinking' * self.thinking}"

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a chat template writes its own special tokens."""
        return list(self.tokenizer(self.render(prompt), add_special_tokens=isinstance(prompt, str)).input_ids)

    def render(self, prompt: Prompt) -> str:
        """What the model reads: plain text as it stands, messages through its chat template."""
        return prompt if isinstance(prompt, str) else render(self.tokenizer, prompt, self.thinking)

    def stop_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Every token that ends a completion: the model's own ends and all tokens that contain a stop string.

        Raises ValueError for a stop string that no single token holds.
        """
        if stop not in self._stops:
            own = self.model.generation_config.eos_token_id
            ids = set(own if isinstance(own, list) else [own]) | {self.tokenizer.eos_token_id}
            texts = self.tokenizer.batch_decode([[i] for i in range(len(self.tokenizer))])
            for string in stop:
                hits = {i for i, text in enumerate(texts) if string in text}
                if not hits:
                    raise ValueError(f"stop={string!r}: no single token holds it; use a shorter stop string")
                ids |= hits
            self._stops[stop] = frozenset(i for i in ids if i is not None)
        return self._stops[stop]

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, seeded: the same call gives the same completions.

        Raises ValueError if a prompt is empty or does not fit the context with `max_new_tokens`.
        """
        if not prompts:
            return []
        start, ids = clock(), [self.encode(p) for p in prompts]
        longest = max(map(len, ids)) + sampling.max_new_tokens
        if min(map(len, ids)) == 0 or longest > self.context:
            raise ValueError(
                f"prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens with max_new_tokens="
                f"{sampling.max_new_tokens}: allowed are 1 to {self.context} tokens in all; shorten the prompt"
            )
        stop_ids = self.stop_ids(sampling.stop)
        generator = torch.Generator().manual_seed(sampling.seed)
        uniform = torch.rand(len(ids), n, sampling.max_new_tokens, generator=generator)
        prefix = self._opening(ids, longest)
        results: list[list[Completion]] = [[] for _ in ids]
        computed = prefix
        with self.weights():
            shared = self.forward(torch.tensor([ids[0][:prefix]]), None, None)[1] if prefix else None
            for batch in batches([len(i) for i in ids], n, sampling.max_new_tokens, self.batch_tokens):
                suffixes = [ids[i][prefix:] for i in batch]
                logits, cache, mask = self._prefill(suffixes, shared, prefix)
                rows, steps = self._decode(logits, cache, mask, uniform[batch].flatten(0, 1), n, sampling, stop_ids)
                computed += sum(map(len, suffixes)) + steps
                for position, i in enumerate(batch):
                    for own, logp, entropy in rows[position * n :][:n]:
                        text = self.tokenizer.decode(own, skip_special_tokens=True)
                        read, size = self.read(prompts[i], text, own, sampling.stop), len(own)
                        results[i].append(replace(read, mean_logprob=logp / size, mean_entropy=entropy / size))
        answered = sum(len(c.token_ids) for group in results for c in group)
        self.book(n * sum(map(len, ids)), answered, computed, start)
        return results

    @torch.inference_mode()
    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """Log-probability in nats of each token of `texts[i]` given `prompts[i]`, at temperature 1.

        Raises ValueError if the lists differ in length or a pair does not fit the context.
        """
        start = clock()
        heads = [self.encode(p) for p in prompts]
        tails = [list(self.tokenizer(t, add_special_tokens=False).input_ids) for t in texts]
        results, computed = self.following(heads, tails)
        self.book(sum(map(len, heads)), sum(map(len, tails)), computed, start)
        return results

    def following(
        self, heads: Sequence[Sequence[int]], tails: Sequence[Sequence[int]]
    ) -> tuple[list[list[float]], int]:
        """`logprobs` of token ids, and how many tokens went through the weights; the caller books them."""
        pairs = list(zip(heads, tails, strict=True))
        results: list[list[float]] = [[] for _ in pairs]
        lengths = [len(h) + len(t) for h, t in pairs]
        if lengths and max(lengths) > self.context:
            raise ValueError(f"prompt and text take {max(lengths)} tokens; the context has {self.context}")
        prefix = self._opening(heads, max(lengths)) if heads else 0
        with self.weights():
            shared = self.forward(torch.tensor([heads[0][:prefix]]), None, None)[1] if prefix else None
            for batch in batches(lengths, 1, 0, self.batch_tokens // 4):
                rows = [[*pairs[i][0], *pairs[i][1]][prefix:] for i in batch]
                keep = max(len(pairs[i][1]) for i in batch) + 1
                logits, _, _ = self._prefill(rows, shared, prefix, keep)
                logp = logits.float().log_softmax(-1)
                for row, i in enumerate(batch):
                    tail = torch.tensor(pairs[i][1], dtype=torch.long, device=logp.device)
                    picked = logp[row, keep - 1 - len(tail) : keep - 1].gather(-1, tail[:, None])
                    results[i] = picked[:, 0].tolist()
        return results, prefix + sum(lengths) - prefix * len(lengths)

    def _opening(self, ids: Sequence[Sequence[int]], longest: int) -> int:
        """Tokens that all prompts open with and that are computed once.

        0 where `longest` positions pass a sliding window: it counts the padding between opening and rest.
        """
        return common_prefix(ids) if fits_window(self.model.config, longest) else 0

    def weights(self) -> Any:
        """Adapter off for the anchor; a plain model has none to switch."""
        if self.adapter:
            return nullcontext()
        if hasattr(self.model, "disable_adapter"):
            return self.model.disable_adapter()
        if any("lora_" in name for name, _ in self.model.named_parameters()):
            raise ValueError("this anchor would run with the adapter on: take the anchor from what add_lora returns")
        return nullcontext()

    def book(self, prompt_tokens: int, completion_tokens: int, computed: int, start: float, calls: int = 1) -> None:
        """Add to the ledger under this model's role; `computed` tokens went through the weights."""
        self.ledger.add(
            self.role,
            calls=calls,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            flops=2.0 * self.parameters * computed,
            seconds=clock() - start,
        )

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor | None, cache: DynamicCache | None, keep: int = 1
    ) -> tuple[torch.Tensor, DynamicCache]:
        """One pass. ids (B, S), mask (B, P + S) over cache and input; logits of the last `keep` positions."""
        cache = DynamicCache(config=self.model.config) if cache is None else cache
        training = self.model.training
        self.model.eval()
        positions = None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        out = self.model(
            input_ids=ids.to(self.model.device),
            attention_mask=None if mask is None else mask.to(self.model.device),
            position_ids=None if positions is None else positions.to(self.model.device),
            past_key_values=cache,
            use_cache=True,  # a trained model's config has it off, and decoding would recompute everything
            # an index copies the rows; a slice of a frozen model's states makes matmul copy the vocabulary per row
            logits_to_keep=torch.arange(ids.shape[1] - keep, ids.shape[1], device=self.model.device),
        )
        self.model.train(training)
        return out.logits, cache

    def _prefill(
        self, suffixes: list[list[int]], shared: DynamicCache | None, prefix: int, keep: int = 1
    ) -> tuple[torch.Tensor, DynamicCache, torch.Tensor]:
        """Run each prompt's own tokens, left-padded, over a copy of the shared prefix's cache."""
        width = max(map(len, suffixes))
        ids = torch.tensor([[0] * (width - len(s)) + s for s in suffixes])
        mask = torch.tensor([[1] * prefix + [0] * (width - len(s)) + [1] * len(s) for s in suffixes])
        cache = DynamicCache(config=self.model.config)
        if shared is not None:
            for layer, source in enumerate(shared.layers):
                cache.update(*(t.expand(len(suffixes), -1, -1, -1) for t in (source.keys, source.values)), layer)
        logits, cache = self.forward(ids, mask, cache, keep)
        return logits, cache, mask

    def _decode(
        self,
        logits: torch.Tensor,
        cache: DynamicCache,
        mask: torch.Tensor,
        uniform: torch.Tensor,
        n: int,
        sampling: Sampling,
        stop_ids: frozenset[int],
    ) -> tuple[list[tuple[list[int], float, float]], int]:
        """Draw n sequences from each prefilled row: (token ids, sum of log-probabilities, sum of entropies)."""
        cache.batch_repeat_interleave(n)
        logits, mask = logits[:, -1].repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        stops = torch.tensor(sorted(stop_ids))
        rows: list[tuple[list[int], float, float]] = [([], 0.0, 0.0) for _ in range(len(uniform))]
        active, computed = torch.arange(len(uniform)), 0
        for step in range(sampling.max_new_tokens):
            tokens, logp, entropy = draw(logits.float(), sampling, uniform[active, step])
            for row, token, lp, h in zip(
                active.tolist(), tokens.tolist(), logp.tolist(), entropy.tolist(), strict=True
            ):
                ids, total_logp, total_entropy = rows[row]
                ids.append(token)
                rows[row] = (ids, total_logp + lp, total_entropy + h)
            running = ~torch.isin(tokens, stops)
            if step + 1 == sampling.max_new_tokens or not running.any():
                break
            if not running.all():  # ended rows leave the batch, so nobody waits for the longest
                kept = running.nonzero()[:, 0]
                cache.batch_select_indices(kept.to(self.model.device))
                active, tokens, mask = active[kept], tokens[kept], mask[kept]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits, cache = self.forward(tokens[:, None], mask, cache)
            logits, computed = logits[:, -1], computed + len(tokens)
        return rows, computed

    def read(self, prompt: Prompt, text: str, ids: Sequence[int], stop: tuple[str, ...]) -> Completion:
        """A completion of these token ids: `text` less what was thought, cut before the first stop string."""
        text = spoken(text, self.render(prompt))
        cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
        finish: Literal["stop", "length"] = "stop" if ids and ids[-1] in self.stop_ids(stop) else "length"
        return Completion(text[: min(cuts)] if cuts else text, tuple(ids), finish)


def common_prefix(ids: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts open with; each keeps at least one of its own, whose logits start the completion."""
    shortest = min(map(len, ids))
    same = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ids, strict=False))
    return min(sum(1 for _ in same), shortest - 1)


def batches(lengths: list[int], n: int, new_tokens: int, budget: int) -> Iterator[list[int]]:
    """Indices in batches whose n samples stay under the budget of positions, prompts of like length together."""
    batch: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        rows = (len(batch) + 1) * n
        if batch and (rows * (lengths[i] + new_tokens) > budget or rows > MAX_ROWS):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch
