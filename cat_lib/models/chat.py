"""Texts as a model reads and writes them: through its chat template, less its thinking, cut to fit its context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal, Self

from jinja2 import TemplateError

from cat_lib.ledger import Ledger, clock
from cat_lib.prompts import ask, without_thinking
from cat_lib.schema import Completion, Keep, Message, Model, Prompt, Sampling

Rows = list[tuple[list[int], list[list[int]]]]  # token ids: heads, each with the tails that follow it
Counted = tuple[list[list[float]], int]


def render(tokenizer: Any, messages: Sequence[Message], thinking: bool) -> str:
    """The chat as the model reads it, up to where its answer begins.

    For a template that refuses a system turn, or two turns of one role in a row, a system turn becomes the user's and
    turns of one role are joined. Raises ValueError with the template's own words if it refuses that too.
    """
    as_user = [("user" if turn["role"] == "system" else turn["role"], turn["content"]) for turn in messages]
    by_role = groupby(as_user, key=lambda turn: turn[0])
    joined = [{"role": role, "content": "\n\n".join(text for _, text in turns)} for role, turns in by_role]
    for turns in (list(messages), joined):
        try:
            options = {"add_generation_prompt": True, "tokenize": False, "enable_thinking": thinking}
            return str(tokenizer.apply_chat_template(turns, **options))
        except TemplateError as error:
            refusal = str(error)
    roles, opening = ", ".join(t["role"] for t in messages), messages[0]["content"][:60] if messages else ""
    raise ValueError(
        f"a conversation with the turns {roles} ({opening!r}): the model's chat template refuses it ({refusal}); "
        "leave it out, or let its turns begin with the user's and alternate"
    )


@dataclass
class Draft:
    """A rollout while it is made: its prompt's ids, its own, their log-probabilities, and spans a tool put in."""

    head: list[int]
    ids: list[int]
    numbers: list[float]
    foreign: list[tuple[int, int]] = field(default_factory=list)

    def goes_on(self, more: list[int] | None) -> bool:
        """Whether it does, and then with `more` behind it."""
        if more:
            self.foreign.append((len(self.ids), len(self.ids) + len(more)))
            self.ids, self.numbers = self.ids + more, self.numbers + [0.0] * len(more)
        return more is not None


@dataclass(kw_only=True)
class Speaker:
    """What an engine in this process does with text, by its tokenizer."""

    tokenizer: Any
    name: str
    role: str = "policy"
    thinking: bool = False  # whether the chat template may let the model think first; the paper has it off
    ledger: Ledger = field(default_factory=Ledger)
    policies: dict[str, Any] = field(default_factory=dict, repr=False)  # by name; all roles share them
    scores = True

    if TYPE_CHECKING:

        @property
        def parameters(self) -> int: ...  # that a token of text passes through

        @property
        def context(self) -> int: ...

        @property
        def ends(self) -> set[int]: ...

        def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]: ...
        # `logprobs` of token ids, and how many tokens went through the weights
        def following(self, heads: Sequence[list[int]], tails: Sequence[list[int]]) -> Counted: ...
        # the numbers that `score` gives each tail after its head, one after the other, and how many tokens as above
        def scored(self, rows: Rows, words: list[int]) -> Counted: ...

    def direct(self) -> Self:
        """Itself with its thinking off: for who reads the likeliest next word, where a thought would be due.

        Raises ValueError if its chat template opens the thinking all the same.
        """
        direct = replace(self, thinking=False)
        if direct.opens_thinking([{"role": "user", "content": "-"}]):
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

    def opens_thinking(self, prompt: Prompt) -> bool:
        """Whether the answer begins inside a thought: some chat templates open the thinking themselves."""
        return self.render(prompt).rstrip().endswith("<think>")

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special).input_ids)

    def stop_ids(self, stop: tuple[str, ...]) -> frozenset[int]:
        """Every token that ends a completion: the model's own ends and all tokens that contain a stop string.

        Raises ValueError for a stop string that no single token holds.
        """
        return frozenset(self.ends).union(*(_holding(self.tokenizer, string) for string in stop))

    def after(self, ids: Sequence[int], sampling: Sampling) -> list[int] | None:
        """What the tool puts behind these ids, which came to a stop string; None: they have ended, or have no tool.

        Cut so that one more can be drawn.
        """
        room = sampling.max_new_tokens - len(ids)
        if not sampling.tool or room < 1 or ids[-1] in self.ends or ids[-1] not in self.stop_ids(sampling.stop):
            return None
        more = sampling.tool(self.decode(ids))
        return None if more is None else self._ids(more)[: room - 1]

    def fitting(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[int]]:
        """Token ids of the prompts.

        Raises ValueError if one is empty or does not fit with `max_new_tokens`, or if a model that thinks has a tool.
        """
        if sampling.tool and any(self.thinking or self.opens_thinking(p) for p in prompts):
            raise ValueError(
                f"{self.name!r} thinks first, and a tool can't be called from thoughts: take thinking=false"
            )
        ids = [self.encode(p) for p in prompts]
        shortest, longest = (f(map(len, ids)) for f in (min, max))
        if shortest == 0 or longest + sampling.max_new_tokens > self.context:
            raise ValueError(
                f"prompts of {shortest} to {longest} tokens with max_new_tokens={sampling.max_new_tokens}: allowed are "
                f"1 to {self.context} tokens in all; shorten the prompt"
            )
        return ids

    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]:
        """Log-probability in nats of each token of `texts[i]` given `prompts[i]`, at temperature 1.

        Raises ValueError if the lists differ in length or a pair does not fit the context.
        """
        start, heads, tails = clock(), [self.encode(p) for p in prompts], [self._ids(t) for t in texts]
        results, computed = self.following(heads, tails)
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
        found, computed = self.scored(rows, first)
        tokens, numbers = sum(len(head) + len(tail) for head, tails in rows for tail in tails), iter(found)
        self.book(tokens, len(found), computed, start, calls=len(found))
        return [[next(numbers) for _ in tails] for _, tails in rows]

    def attempt(self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None = None) -> list[Completion]:
        """One completion of each prompt: what fails here fails as a whole."""
        answers = [answer for (answer,) in self.generate(prompts, 1, sampling)]
        for i, answer in enumerate(answers):
            if keep:
                keep(i, answer)
        return answers

    def book(self, prompt_tokens: int, completion_tokens: int, computed: int, start: float, calls: int = 1) -> None:
        """Add to the ledger under this model's role; `computed` tokens went through the weights."""
        tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        flops = 2.0 * self.parameters * computed
        self.ledger.add(self.role, calls=calls, flops=flops, seconds=clock() - start, **tokens)

    def read(self, prompt: Prompt, text: str, ids: Sequence[int], sampling: Sampling) -> Completion:
        """A completion of these token ids: `text` less what was thought, cut before the first stop string.

        With a tool, which went on at those, before one in the last token.
        """
        last = len(text) - len(self.decode(ids[:-1])) if sampling.tool else len(text)
        text = without_thinking("<think>" * self.opens_thinking(prompt) + text)
        cuts = [at for at in (text.find(s, max(0, len(text) - last)) for s in sampling.stop) if at >= 0]
        ended = bool(ids) and ids[-1] in self.stop_ids(sampling.stop)
        if ended and sampling.tool and len(ids) >= sampling.max_new_tokens and ids[-1] not in self.ends:
            ended = sampling.tool(self.decode(ids)) is None
        finish: Literal["stop", "length"] = "stop" if ended else "length"
        return Completion(text[: min(cuts)] if cuts else text, tuple(ids), finish)


@lru_cache(maxsize=32)
def _holding(tokenizer: Any, string: str) -> frozenset[int]:
    """The tokens that contain a stop string. Raises ValueError if no single one does."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    if hits := frozenset(i for i, text in enumerate(texts) if string in text):
        return hits
    raise ValueError(f"stop={string!r}: no single token holds it; use a shorter stop string")


def fitted(model: Model, reserve: int, name: str, rollouts: Sequence[str], **values: Any) -> Prompt:
    """The prompt `name` with its rollouts cut so that it leaves `reserve` tokens of the model's context."""
    frame = len(model.encode(ask(name, rollouts=[""] * len(rollouts), **values)))
    room = model.context - reserve - frame - 8 * len(rollouts)  # joins can re-tokenise
    return ask(name, rollouts=fit(model, rollouts, room), **values)


def fit(model: Model, texts: Sequence[str], room: int) -> list[str]:
    """The texts cut to `room` tokens together: each gets an equal share, and what the short ones leave unused.

    A longer text keeps the first third and the last two thirds of its share, where its answer stands, with
    `[...]` between. Raises ValueError if the share is under 16 tokens, since nothing readable would be left.
    """
    ids = [model.encode(text) if text else [] for text in texts]
    if sum(map(len, ids)) <= room:
        return list(texts)
    left, share = room, 0
    for rest, length in zip(range(len(ids), 0, -1), sorted(map(len, ids)), strict=True):
        share = left // rest
        left -= min(length, share)
    if share < 16:
        raise ValueError(
            f"{len(texts)} rollouts leave {share} tokens each in a context of {model.context}; "
            "lower group_size or take an anchor with a longer context"
        )
    head, tail = share // 3, share - share // 3 - 4
    return [
        text if len(own) <= share else model.decode(own[:head]) + " [...] " + model.decode(own[-tail:])
        for text, own in zip(texts, ids, strict=True)
    ]
