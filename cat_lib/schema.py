"""The nouns of the method, in one place: every layer speaks in these types and in no others.

Left out on purpose: behaviour. A `Model` generates, a `Task` asks and reads answers; both are Protocols so that
an engine or a task is one file with no base class to inherit from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, TypedDict

from cat_lib.ledger import Ledger


class Message(TypedDict):
    """One turn of a conversation in the common chat format."""

    role: str
    content: str


Prompt = str | list[Message]  # plain text is continued as it stands; messages go through the chat template


class Tool(Protocol):
    """What a policy may call while it writes."""

    # of a text that came to a stop string: what is put behind it before it goes on, perhaps nothing; None: it ends
    def __call__(self, text: str) -> str | None: ...
    # a whole text as it came about: each piece, and whether the policy wrote it
    def pieces(self, text: str) -> list[tuple[str, bool]]: ...


@dataclass(frozen=True)
class Sampling:
    """How to draw tokens. `temperature=0` is greedy; `top_k=0` and `top_p=1` switch those filters off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()  # generation ends at the first of these strings; the text is cut before it
    seed: int = 0
    form: str = ""  # a regular expression of the whole text, which vLLM holds to; other engines draw freely
    tool: Tool | None = None  # asked at each stop string whether it goes on


@dataclass(frozen=True)
class Completion:
    """One answer of a model. `finish` is "stop" if the model ended it, "length" if it was cut."""

    text: str
    token_ids: tuple[int, ...]  # with the stop token, so that training can reinforce ending
    finish: Literal["stop", "length"]
    # nats a token of the policy's own, at the sampling temperature (greedy: 1), before top-k and top-p cut it
    mean_logprob: float | None = None
    mean_entropy: float | None = None
    self_certainty: float | None = None  # mean of logsumexp minus the mean logit: KL(uniform || p) + log V
    foreign: tuple[tuple[int, int], ...] = ()  # spans (start, stop) of `token_ids` that the policy did not write
    logprobs: tuple[float, ...] | None = None  # vLLM's: of each token, nats of the distribution it was drawn from

    @property
    def ended(self) -> bool:
        return self.finish == "stop"

    @property
    def mask(self) -> tuple[int, ...]:
        """1 for each token that the policy wrote, 0 for the others."""
        others = {i for start, stop in self.foreign for i in range(start, stop)}
        return tuple(int(i not in others) for i in range(len(self.token_ids)))


@dataclass(frozen=True)
class Lost:
    """What an answer is that could not be read within its limits, and why: neither right nor wrong."""

    why: str


@dataclass(frozen=True)
class Example:
    """One question. `gold` is for evaluation only: no reward and no estimator may read it. Empty: nobody knows it."""

    id: str
    question: str
    prompt: Prompt
    gold: str
    level: str
    rubric: Rubric | None = None  # the experts' criteria, where answers can't be checked; as gold as `gold`
    tags: tuple[str, ...] = ()  # what scores are broken down by, e.g. "theme:hedging"


@dataclass(frozen=True)
class Group:
    """The rollouts of one question: what estimators read and reward rules score, always whole.

    It has no field for a gold answer, so none can reach a training signal by way of a group.
    """

    id: str
    question: str
    rollouts: tuple[Completion, ...]
    answers: tuple[str | None, ...]  # of each rollout; None: it gives no answer, a fact about the rollout
    prompt: Prompt = ""  # what the rollouts answer; only estimators that weigh a rollout's probability need it
    lost: frozenset[int] = frozenset()  # rollouts whose answer could not be read within its limits: unscorable


@dataclass(frozen=True)
class Reference:
    """A pseudo-reference: what an estimator takes for the truth. `answer` is None where it has none."""

    text: str
    answer: str | None
    estimator: str


@dataclass(frozen=True)
class Criterion:
    """One binary statement about a response. Negative points: meeting it is a fault."""

    text: str
    points: float = 1.0
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rubric:
    """Criteria for the responses to one question; `source` says who wrote them and from what."""

    criteria: tuple[Criterion, ...]
    source: str

    @property
    def possible(self) -> float:
        """Points of a response that meets every positive criterion and no other."""
        return sum(c.points for c in self.criteria if c.points > 0)


@dataclass(frozen=True)
class Verdict:
    """Whether a response meets a criterion. `met` is None where the judge failed, and `cause` says how."""

    met: bool | None
    cause: str | None = None
    reason: str | None = None  # the judge's own words, in text mode
    score: float | None = None  # what was compared with the threshold, in probability mode
    grade: float | None = None  # of a judge that grades: 0, 1/2 or 1; met is the whole of it

    @property
    def worth(self) -> float:
        """How far the criterion is met, from 0 to 1; of a known verdict alone."""
        return float(bool(self.met)) if self.grade is None else self.grade


class AnswerError(RuntimeError):
    """A request that got no usable answer; `cause` says in a word or two why."""

    cause: str


Keep = Callable[[int, Completion], None]  # told of the place of a prompt and its answer, as soon as there is one


class Model(Protocol):
    """What every engine offers. All that it computes is written to the ledger, under its role.

    What an engine can't do raises `models.ModelError`, which names the engine that can.
    """

    role: str
    ledger: Ledger
    thinking: bool  # whether it may think before it answers
    scores: bool  # whether it gives log-probabilities of a given text: `logprobs`, `score`, `split`

    @property
    def name(self) -> str: ...
    @property
    def context(self) -> int: ...  # tokens that prompt and answer may take together
    @property
    def identity(self) -> str: ...  # what a cache of its answers is keyed by

    def encode(self, prompt: Prompt) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    # the tokens of a prompt before `mark`, and the text behind it, up to where the answer begins
    def split(self, prompt: Prompt, mark: str) -> tuple[list[int], str]: ...
    def generate(self, prompts: Sequence[Prompt], n: int, sampling: Sampling) -> list[list[Completion]]: ...
    # one completion of each prompt, or the error that took its place
    def attempt(
        self, prompts: Sequence[Prompt], sampling: Sampling, keep: Keep | None = None
    ) -> Sequence[Completion | AnswerError]: ...
    def logprobs(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[list[float]]: ...
    def score(
        self, heads: Sequence[Sequence[int]], branches: Sequence[Sequence[str]], words: Sequence[str] = ()
    ) -> list[list[list[float]]]: ...
    def direct(self) -> Model: ...  # itself with its thinking off
    def anchor(self, role: str = "anchor") -> Model: ...  # the frozen initial model, its costs booked under `role`
    def adapter(self, name: str) -> Model: ...  # the policy of that name on the same weights


class Task(Protocol):
    """Questions, and the only place that knows what an answer looks like. What it can't do, its attributes say."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # a dataclass: `replace` changes how it is sampled

    @property
    def name(self) -> str: ...
    @property
    def sampling(self) -> Sampling: ...  # how rollouts are drawn
    @property
    def verifiable(self) -> bool: ...  # whether answers can be extracted and compared
    @property
    def synthesis_prompt(self) -> str: ...  # the kind of prompt by which its models can write a reference
    @property
    def rows(self) -> Sequence[Example]: ...  # all its questions, whatever the split
    @property
    def skipped(self) -> Mapping[str, Any]: ...  # rows left out: source, skipped, read, why; empty: none

    def examples(self, split: str, n: int | None, seed: int) -> list[Example]: ...  # n of a split, or all
    def extract(self, completion: Completion, question: str) -> str | Lost | None: ...  # None: it gives no answer
    def correct(self, answer: str | None, gold: str) -> bool: ...


Judging = Callable[[Sequence[tuple[str, str]]], list[Verdict]]  # (response, criterion) pairs to verdicts
Estimator = Callable[[Sequence[Group]], list[Reference | None]]  # whole groups in one call, so that it can batch
RewardRule = Callable[[Sequence[Group], Sequence[Reference | None]], list[list[float | None]]]
