"""A question answered by a run's base model, and by the same with the run's adapter, side by side.

It is asked in the words of the run's task where its text can be put into one of those prompts, and answered greedily.
Left out: turns of a conversation; each question stands alone, as in training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import nearest
from cat_lib.schema import Example, Prompt
from cat_lib.shown import printed
from cat_lib.tasks import load_task, sampling_of


def adapter_of(run: str) -> tuple[Path, dict[str, Any]]:
    """The folder of the adapter of a run, by its folder, a part's, or its id, and the run's parameters.

    Raises ValueError for no such run, and one without an adapter, or with several.
    """
    known = {folder.name: folder for folder in places.RUNS.glob("*/*/")}
    folder = Path(run).absolute() if (Path(run) / "config.json").exists() else known.get(run)
    if not folder:
        raise ValueError(
            f"no run {run!r}{nearest(run, known)}: name its folder, results/runs/<notebook>/<run>, or its id"
        )
    found = sorted(path.parent for path in folder.rglob("adapter/adapter_config.json"))
    if len(found) != 1:
        parts = f"several adapters; name one's folder: {', '.join(str(path.parent) for path in found)}"
        raise ValueError(
            f"{folder} has {parts if found else 'no adapter: that notebook trains none, or has not ended'}"
        )
    of = [config["parameters"] for up in (folder, folder.parent) if "parameters" in (config := read_config(up))]
    if not (of and of[0].get("model")):
        raise ValueError(f"no config.json in or above {folder} names a model")
    return found[0], of[0]


def answers(run: str, questions: Iterable[str]) -> Iterator[Table]:
    """The two answers to each question; the model is loaded before the first is asked for.

    Raises as `adapter_of`, and ModelError if its base model can't be had, or is another now.
    """
    from cat_lib.learning.checkpoints import load_adapter
    from cat_lib.learning.lora import add_lora
    from cat_lib.models import load_model, saved
    from cat_lib.models.merging import read_adapter, require_fit

    adapter, of = adapter_of(run)
    require_fit(saved(of["model"]), read_adapter(adapter))
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    policy = add_lora(load_model(of["model"], thinking=of.get("thinking", False)), rank, 0)
    load_adapter(policy.model, adapter)
    try:
        example = load_task(of["task"], of.get("data")).examples("train", 1, 0)[0]
    except (ValueError, KeyError):  # its data is not here, or it has none
        print("the task's own wording can't be had: asked as a chat", flush=True)
        example = Example("", "", "", "")
    sampling = replace(sampling_of(of.get("task", "arithmetic")), temperature=0.0)
    for question in questions:
        prompt = worded(example, question)
        texts = [model.generate([prompt], 1, sampling)[0][0].text for model in (policy.anchor(), policy)]
        table = Table("without the adapter", "with it", title=Text(printed(question)), show_lines=True)
        table.add_row(*(Text(printed(text.strip())) for text in texts))
        yield table


def worded(example: Example, question: str) -> Prompt:
    """The prompt of an example with another question in its place; where its question is not in it, a bare chat."""
    old, prompt = example.question, example.prompt
    if old and isinstance(prompt, str) and old in prompt:
        return question.join(prompt.rsplit(old, 1))
    if old and not isinstance(prompt, str) and old in prompt[-1]["content"]:
        return [*prompt[:-1], {**prompt[-1], "content": question.join(prompt[-1]["content"].rsplit(old, 1))}]
    return [{"role": "user", "content": question}]
