"""A vLLM server that draws the rollouts of a training: of several processes, or on GPUs of its own.

The policy goes there as an adapter in a folder, which the server must see (TMPDIR says where, for a server on another
machine), under a name of the launch, a count and its weights. So processes that hold the same policy name it alike
without asking each other, no name is used again, and the server's prefix cache, which is keyed by it, never serves an
older policy. vLLM's `load_inplace` under one name would: it leaves the cache as it was, and reads the adapter again
for each request. The server keeps the names of adapters that it has dropped: some bytes a step.

Left out: retries. A server that is gone ends the run as failed, and a checkpoint is there to go on from.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

from cat_lib.models import ModelError, replies
from cat_lib.models.vllm import VLLMModel

if TYPE_CHECKING:
    from cat_lib.models.local import LocalModel

_AT_ONCE = 64  # requests, one a prompt
_KEPT = 3  # policies whose folders stay


@dataclass
class ServedModel(VLLMModel):
    """vLLM behind a URL: `llm` is a client, and `lora` the name of an adapter that the server has."""

    served: str = ""  # the base model's name there
    longest: int = 0  # tokens of prompt and answer together
    answer_ends: frozenset[int] = frozenset()  # the learner's
    handed: list[str] = field(default_factory=list, repr=False)  # digests of policies, in their order

    @property
    def context(self) -> int:
        """Positions that the server was started with, less the one that it draws behind a text that is scored."""
        return self.longest - 1

    @property
    def ends(self) -> set[int]:
        """The learner's own tokens that end an answer."""
        return set(self.answer_ends)

    def drawing_for(self, model: LocalModel) -> ServedModel:
        """The server in the place of `model`, its adapter as it is now: the costs, name and thinking are `model`'s.

        Raises ModelError if the server does not take the adapter.
        """
        mine = {"role": model.role, "ledger": model.ledger, "thinking": model.thinking, "tokenizer": model.tokenizer}
        drawing = replace(self, lora=None, answer_ends=frozenset(model.ends), parameters=model.parameters, **mine)
        if model.initial is None:
            if model.plain.device.type == "cpu":
                query = next(m for n, m in model.plain.get_decoder().named_modules() if n.endswith("q_proj"))
                name = next(n for n, m in model.plain.named_modules() if m is query)
                drawing.lora, folder = f"{_launch()}-nothing", _nothing(name, *query.weight.shape)
                self._post("load_lora_adapter", {"lora_name": drawing.lora, "lora_path": folder.name})
            return drawing
        folder = TemporaryDirectory(prefix="cat_lib_adapter_")
        model.model.save_pretrained(folder.name, save_embedding_layers=False)
        weights = (Path(folder.name) / "adapter_model.safetensors").read_bytes()
        digest = hashlib.sha256(weights).hexdigest()[:16]
        drawing.lora = next(reversed(self.policies), "")
        if drawing.lora.endswith(digest):
            folder.cleanup()
            return drawing
        self.handed.append(digest)
        drawing.lora = f"{_launch()}-{len(self.handed)}-{digest}"
        self._post("load_lora_adapter", {"lora_name": drawing.lora, "lora_path": folder.name})
        self.policies[drawing.lora] = folder
        for old in [*self.policies][:-_KEPT]:  # a process that is behind may draw from the one before
            self.policies.pop(old).cleanup()
        return drawing

    def close(self) -> None:
        """Close the connection; the server goes on."""
        self.llm.close()

    def sleep(self) -> None:
        """Nothing: the server's memory is its own."""

    def _asked(self, form: str = "", **settings: Any) -> Any:
        return settings | ({"structured_outputs": {"regex": form}} if form else {})

    def _run(self, rows: Sequence[Sequence[int]], asked: Sequence[Any]) -> list[Any]:
        # what the model's own generation config would add is set to nothing
        plain = {"return_token_ids": True, "repetition_penalty": 1.0, "min_p": 0.0, "model": self.lora or self.served}

        def one(row: Sequence[int], settings: dict[str, Any]) -> Any:
            body = self._post("completions", plain | settings | {"prompt": list(row)})
            try:
                return _answer(body["choices"])
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                said = f"{self.name}: an answer without tokens and log-probabilities ({type(error).__name__})"
                raise ModelError(f"{said}; is it vLLM's server, 0.30?") from None

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(pool.map(one, rows, asked))

    def _post(self, path: str, fields: dict[str, Any]) -> Any:
        return _said(self.name, self.llm, "POST", path, json=fields)


@cache
def _nothing(layer: str, size_out: int, size_in: int) -> TemporaryDirectory[str]:
    """The folder of an adapter that adds zero, under which the base model is drawn from on a CPU.

    There vLLM 0.30 looks up the adapter of a row without one by the index -1, which is the last adapter that it has, as
    long as a row with one is in the same batch.
    """
    folder, zero = TemporaryDirectory(prefix="cat_lib_adapter_"), f"base_model.model.{layer}"
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    (Path(folder.name) / "adapter_config.json").write_text(json.dumps(config))
    weights = {f"{zero}.lora_A.weight": torch.zeros(1, size_in), f"{zero}.lora_B.weight": torch.zeros(size_out, 1)}
    save_file(weights, Path(folder.name) / "adapter_model.safetensors")
    return folder


@cache
def _launch() -> str:
    """A name of this launch, which all its processes make alike."""
    known = [os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")]
    own = known if os.environ.get("WORLD_SIZE", "1") != "1" else [os.urandom(8).hex()]
    return f"cat_lib-{hashlib.sha256(' '.join(own).encode()).hexdigest()[:8]}"


def _answer(choices: Sequence[Any]) -> Any:
    """vLLM's own answer, of what its server says of one prompt."""
    outputs = list[SimpleNamespace]()
    for one in sorted(choices, key=lambda one: one["index"]):
        pairs = zip(one["token_ids"], one["logprobs"]["token_logprobs"], strict=True) if one["logprobs"] else ()
        own = [{token: SimpleNamespace(logprob=float(number))} for token, number in pairs]
        outputs.append(SimpleNamespace(token_ids=one["token_ids"], logprobs=own))
    places = [
        {int(token): SimpleNamespace(logprob=float(found["logprob"])) for token, found in (place or {}).items()}
        for place in choices[0].get("prompt_logprobs") or ()
    ]
    return SimpleNamespace(outputs=outputs, prompt_logprobs=places)


def _said(name: str, client: Any, method: str, path: str, **given: Any) -> Any:
    """What a server answers. Raises ModelError with the server's own words if it refuses, or is not there."""
    import httpx

    try:
        answer = client.request(method, path, **given)
    except httpx.HTTPError as error:
        raise ModelError(f"{name}: {replies.disconnected(error)}") from None
    body = replies.parsed(answer.text)
    if answer.status_code >= 400 and "has already been loaded" not in (said := replies.sentence(body)):
        advice = ""
        if path == "load_lora_adapter" and "No adapter found" in said:
            advice = "; it can't see the folder: set TMPDIR to one that both machines share"
        elif path == "load_lora_adapter" and answer.status_code == 404:
            advice = "; it takes no adapters: start it with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 and --enable-lora"
        raise ModelError(f"{name} refuses ({answer.status_code}): {said}{advice}")
    return body


def load(url: str) -> ServedModel:
    """The server at `url` (`http://HOST:PORT/v1`); its key is `CAT_LIB_API_KEY`, if it wants one.

    Raises ModelError if no server of vLLM's answers there.
    """
    import httpx

    key = {"Authorization": f"Bearer {replies.key()}"}
    # a step's rollouts take as long as they take; a server that can't be reached says so at once
    limits, patience = httpx.Limits(max_connections=_AT_ONCE), httpx.Timeout(None, connect=20.0)
    client = httpx.Client(base_url=url.rstrip("/") + "/", headers=key, timeout=patience, limits=limits)
    listed = _said(url, client, "GET", "models")
    with suppress(LookupError, TypeError, ValueError):
        base = next(one for one in listed["data"] if one.get("parent") is None and one.get("max_model_len"))
        most = int(base["max_model_len"])
        return ServedModel(client, 0, tokenizer=None, name=url, served=str(base["id"]), longest=most)
    raise ModelError(f"{url} does not say how many tokens it takes: rollouts need vLLM's own server")
