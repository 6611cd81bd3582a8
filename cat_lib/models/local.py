"""The transformers engine: rollouts that share their prompt pay for it once.

`generate` runs the prefix common to all prompts once, each prompt's own rest once, and expands the key-value cache to
the n samples. One uniform number is drawn per sample and position before decoding, so what is sampled does not depend
on how the batch was split. `score` does the same for many short continuations of one long text, as a judge asks for.

Left out: beam search, penalties, multi-token stop strings, speculative decoding. On GPUs vLLM does more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal

import torch

from cat_lib.ledger import Ledger, clock
from cat_lib.models import ADVICE, ModelError, passes
from cat_lib.models.attention import fits_window
from cat_lib.models.chat import render, spoken
from cat_lib.schema import Completion, Keep, Prompt, Sampling


@dataclass
class LocalModel:
    """A causal model and its tokenizer, in one role.

    A policy's `model` has a LoRA adapter; `initial` are the same weights in memory without it. What policies there
    are on these weights is known to all of them, by name.
    """

    model: Any
    tokenizer: Any
    name: str
    role: str = "policy"
    engine: str = "transformers"  # "unsloth" where Unsloth made the model: TRL then makes the rollouts
    thinking: bool = False  # whether the chat template may let the model think first; the paper has it off
    batch_tokens: int = 16_384  # most key-value positions alive at once
    ledger: Ledger = field(default_factory=Ledger)
    initial: Any = None
    policies: dict[str, Any] = field(default_factory=dict, repr=False)
    scores = True

    @property
    def plain(self) -> Any:
        """The transformers model without an adapter."""
        return self.model if self.initial is None else self.initial

    @property
    def parameters(self) -> int:
        """Parameters that a token of text passes through; the LoRA adapter, below a percent, is not counted."""
        parts = self.plain.get_decoder(), self.plain.get_output_embeddings()
        return sum({id(p): p.numel() for part in parts for p in part.parameters()}.values())

    @property
    def context(self) -> int:
        """Positions the model was built for. Raises ModelError if its config does not say."""
        if positions := getattr(self.model.config.get_text_config(), "max_position_embeddings", None):
            return int(positions)
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
        return f"{self.name} {self.model.dtype} {digest}{' thinking' * self.thinking}"

    def anchor(self, role: str = "anchor") -> LocalModel:
        """The frozen initial model: the same weights in memory, no adapter, costs booked under `role`."""
        return replace(self, role=role, model=self.plain, initial=None)

    def adapter(self, name: str) -> LocalModel:
        """The policy that `add_lora` last made on these weights under this name. ModelError if there is none."""
        if name not in self.policies:
            known, advice = ", ".join(sorted(self.policies)) or "none yet", f"add_lora(model, name={name!r})"
            raise ModelError(f"adapter {name!r}: {self.name!r} has {known}; make it with {advice}")
        return replace(self, role=name, model=self.policies[name], initial=self.plain)

    def direct(self) -> LocalModel:
        """Itself with its thinking off: for who reads the likeliest next word, where a thought would be due.

        Raises ValueError if its chat template opens the thinking all the same.
        """
        direct = replace(self, thinking=False)
        if direct.render([{"role": "user", "content": "-"}]).rstrip().endswith("<think>"):
            raise ValueError(
                f"{self.name!r} always thinks first, so no word can be read where the answer begins; as a judge ask it "
                "in the way judge_prompt='text'"
            )
        return direct

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt; a chat template writes its own special tokens."""
        return self._ids(self.render(prompt), isinstance(prompt, str))

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def split(self, prompt: Prompt, mark: str) -> tuple[list[int], str]:
        """The tokens of a prompt before `mark` and a space, and the text behind it up to where the answer begins."""
        before, after = self.render(prompt).split(mark)
        return self._ids(before.removesuffix(" "), isinstance(prompt, str)), after

    def render(self, prompt: Prompt) -> str:
        """What the model reads: plain text as it stands, messages through its chat template."""
        return prompt if isinstance(prompt, str) else render(self.tokenizer, prompt, self.thinking)

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special).input_ids)

    def stop_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Every token that ends a completion: the model's own ends and all tokens that contain a stop string.

        Raises ValueError for a stop string that no single token holds.
        """
        own = self.model.generation_config.eos_token_id
        ends = {*(own if isinstance(own, list) else [own]), self.tokenizer.eos_token_id} - {None}
        return frozenset(ends).union(*(_holding(self.tokenizer, string) for string in stop))

    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]:
        """n completions of each prompt, seeded: the same call gives the same completions.

        Raises ValueError if a prompt is empty or does not fit the context with `max_new_tokens`.
        """
        if not prompts:
            return []
        start, ids = clock(), [self.encode(p) for p in prompts]
        lengths = [len(i) for i in ids]
        longest = max(lengths) + sampling.max_new_tokens
        if min(lengths) == 0 or longest > self.context:
            raise ValueError(
                f"prompts of {min(lengths)} to {max(lengths)} tokens with max_new_tokens="
                f"{sampling.max_new_tokens}: allowed are 1 to {self.context} tokens in all; shorten the prompt"
            )
        stop_ids = self.stop_ids(sampling.stop)
        generator = torch.Generator().manual_seed(sampling.seed)
        uniform = torch.rand(len(ids), n, sampling.max_new_tokens, generator=generator)
        results: list[list[Completion]] = [[] for _ in ids]
        with self.working():
            shared = passes.opening(self.model, ids, longest)
            computed = prefix = shared.get_seq_length()
            for batch in passes.batches(lengths, n, sampling.max_new_tokens, self.batch_tokens):
                own = [ids[i][prefix:] for i in batch]
                filled = passes.prefill(self.model, own, shared)
                rows, steps = passes.decode(self.model, filled, uniform[batch], sampling, stop_ids)
                computed += sum(map(len, own)) + steps
                for row, (tokens, logp, entropy) in enumerate(rows):
                    i, size = batch[row // n], len(tokens)
                    read = self.read(prompts[i], self.decode(tokens), tokens, sampling.stop)
                    results[i].append(replace(read, mean_logprob=logp / size, mean_entropy=entropy / size))
        answered = sum(len(c.token_ids) for group in results for c in group)
        self.book(n * sum(lengths), answered, computed, start)
        return results

    def attempt(self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None = None) -> list[Completion]:
        """One completion of each prompt: what fails here fails as a whole."""
        answers = [answer for (answer,) in self.generate(prompts, 1, sampling)]
        for i, answer in enumerate(answers):
            if keep:
                keep(i, answer)
        return answers

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """Log-probability in nats of each token of `texts[i]` given `prompts[i]`, at temperature 1.

        Raises ValueError if the lists differ in length or a pair does not fit the context.
        """
        start, heads, tails = clock(), [self.encode(p) for p in prompts], [self._ids(t) for t in texts]
        results, computed = self._following(heads, tails)
        self.book(sum(map(len, heads)), sum(map(len, tails)), computed, start)
        return results

    def score(
        self, heads: Sequence[Sequence[int]], branches: Sequence[Sequence[str]], words: Sequence[str] = ()
    ) -> list[list[list[float]]]:
        """Log-probabilities in nats of what follows `heads[i]` (token ids) and `branches[i][j]` (text).

        With `words`, [i][j] holds the log-probability of each word, read by its first token, right after the branch.
        Without, [i][j] holds one number: the mean log-probability of the branch's own tokens after the head.
        Raises ValueError if two words open with the same token, a head or branch is empty, or a row does not fit.
        """
        start, first = clock(), [self._ids(word)[0] for word in words]
        if len(set(first)) < len(words):
            raise ValueError(f"the words {', '.join(map(repr, words))} open with the same token; take others")
        rows = [(list(h), [self._ids(b) for b in own]) for h, own in zip(heads, branches, strict=True)]
        if not all(head and all(tails) for head, tails in rows):
            raise ValueError("a head or a branch is empty; there is nothing to score")
        longest = max((len(head) + max(map(len, tails)) for head, tails in rows), default=0)
        if longest > self.context:
            raise ValueError(f"head and branch take {longest} tokens; the context has {self.context}")
        pairs = [(head, tail) for head, tails in rows for tail in tails]
        if not fits_window(self.model.config, longest):  # a tree's mask knows none: each branch is a row of its own
            asked = [([*h, *t], [w]) for h, t in pairs for w in first] if words else pairs
            logps, computed = self._following(*zip(*asked, strict=True))
            found = iter(logps)
            results = [[[next(found)[0] for _ in first] if words else [fmean(next(found))] for _ in t] for _, t in rows]
        else:
            with self.working():
                shared = passes.opening(self.model, [head for head, _ in rows], longest)
                prefix, results = shared.get_seq_length(), [[] for _ in rows]
                rows = [(head[prefix:], tails) for head, tails in rows]
                lengths = [len(head) + sum(map(len, tails)) for head, tails in rows]
                computed = prefix + sum(lengths)
                # small batches: over rows this long, padding costs more than batching gains
                for batch in passes.batches(lengths, 1, 0, self.batch_tokens // 16):
                    numbers = passes.trees(self.model, [rows[i] for i in batch], shared, first)
                    for i, own in zip(batch, numbers, strict=True):
                        results[i] = own
        self.book(sum(len(h) + len(t) for h, t in pairs), len(pairs), computed, start, calls=len(pairs))
        return results

    def _following(self, heads: Sequence[list[int]], tails: Sequence[list[int]]) -> tuple[list[list[float]], int]:
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
                logp = passes.prefill(self.model, own, shared, keep)[0].float().log_softmax(-1)
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

    def book(self, prompt_tokens: int, completion_tokens: int, computed: int, start: float, calls: int = 1) -> None:
        """Add to the ledger under this model's role; `computed` tokens went through the weights."""
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        flops = 2.0 * self.parameters * computed
        self.ledger.add(self.role, calls=calls, flops=flops, seconds=clock() - start, **tokens)

    def read(self, prompt: Prompt, text: str, ids: Sequence[int], stop: tuple[str, ...]) -> Completion:
        """A completion of these token ids: `text` less what was thought, cut before the first stop string."""
        text = spoken(text, self.render(prompt))
        cuts = [at for at in (text.find(s) for s in stop) if at >= 0]
        finish: Literal["stop", "length"] = "stop" if ids and ids[-1] in self.stop_ids(stop) else "length"
        return Completion(text[: min(cuts)] if cuts else text, tuple(ids), finish)


@lru_cache(maxsize=32)
def _holding(tokenizer: Any, string: str) -> frozenset[int]:
    """The tokens that contain a stop string. Raises ValueError if no single one does."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    if hits := frozenset(i for i, text in enumerate(texts) if string in text):
        return hits
    raise ValueError(f"stop={string!r}: no single token holds it; use a shorter stop string")
