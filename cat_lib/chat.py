"""A question answered by a run's base model, and by the same with the run's adapter, side by side and greedily.

It is asked in the words of the run's task, where those can be had. Left out: turns; each question stands alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from rich.text import Text

from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import nearest
from cat_lib.schema import Example, Message, Prompt
from cat_lib.shown import printed
from cat_lib.tasks import load_task, sampling_of

_BARE = Example("", "?", [{"role": "user", "content": "?"}], "")


def adapter_of(run: str) -> Path:
    """The adapter of a run, by its folder, a part's, or its id. ValueError for no such run, no adapter, or several."""
    known = {folder.name: folder for folder in places.RUNS.glob("*/*/")}
    folder = Path(run).absolute() if Path(run).is_dir() else known.get(run)
    if not folder:
        raise ValueError(f"no run {run!r}{nearest(run, known)}; name its folder, results/runs/<notebook>/<run>, or id")
    found = sorted(path.parent for path in folder.rglob("adapter/adapter_config.json"))
    if len(found) != 1:
        there = ", ".join(str(path.parent) for path in found) or "its notebook trains none, or did not get so far"
        raise ValueError(f"{folder} has {len(found)} adapters, and one is asked: name a folder with one ({there})")
    return found[0]


def answers(run: str, questions: Iterable[str]) -> Iterator[Table]:
    """The two answers to each question; the model is loaded before the first is asked for.

    Raises as `adapter_of`, and ModelError if the base model can't be had, or is another now.
    """
    from cat_lib.learning.checkpoints import load_adapter
    from cat_lib.learning.lora import add_lora
    from cat_lib.models import load_model, saved
    from cat_lib.models.merging import read_adapter, require_fit

    adapter = adapter_of(run)
    of = next((p for up in adapter.parents[:2] if (p := read_config(up).get("parameters"))), {})
    if not of.get("model"):
        raise ValueError(f"no config.json above {adapter} names a model: copy the run's folder whole")
    require_fit(saved(of["model"]), read_adapter(adapter))
    rank = json.loads((adapter / "adapter_config.json").read_text())["r"]
    policy = add_lora(load_model(of["model"], thinking=of.get("thinking", False)), rank, 0)
    load_adapter(policy.model, adapter)
    try:
        asked = load_task(of["task"], of.get("data")).examples("train", None, 0)
    except (ValueError, KeyError):  # its data is not here, or it has none
        asked = []
    e = next((e for e in asked if e.question in str(e.prompt)), _BARE)
    sampling = replace(sampling_of(of.get("task", "arithmetic")), temperature=0.0)
    for question in questions:
        prompt: Prompt = (
            e.prompt.replace(e.question, question)
            if isinstance(e.prompt, str)
            else [
                Message(role=turn["role"], content=turn["content"].replace(e.question, question)) for turn in e.prompt
            ]
        )
        texts = [model.generate([prompt], 1, sampling)[0][0].text for model in (policy.anchor(), policy)]
        table = Table("without the adapter", "with it", title=Text(printed(question)))
        table.add_row(*(Text(printed(text.strip())) for text in texts))
        yield table
