"""A question answered by a run's base model and by the same with the run's adapter, side by side and greedily.

It is asked in the words of the run's task, where those can be had. Left out: turns; each question stands alone.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cat_lib.check import fail
from cat_lib.models import ModelError
from cat_lib.runs import places
from cat_lib.runs.folder import read_config
from cat_lib.runs.parameters import nearest
from cat_lib.shown import printed
from cat_lib.tasks import load_task, sampling_of


def chat(
    run: Annotated[str, typer.Argument(help="Whose adapter answers: a run's folder, or its id.")],
    question: Annotated[str, typer.Argument(help="Without it, one after another until an empty line.")] = "",
) -> None:
    """Ask a run's base model, and the same with the run's adapter, side by side."""
    from cat_lib.learning.checkpoints import load_adapter
    from cat_lib.learning.lora import add_lora
    from cat_lib.models import load_model, saved
    from cat_lib.models.merging import read_adapter, require_fit

    known = {folder.name: folder for folder in places.RUNS.glob("*/*/")}
    folder = Path(run).absolute() if Path(run).is_dir() else known.get(run)
    if not folder:
        fail(f"no run {run!r}{nearest(run, known)}; name its folder, results/runs/<notebook>/<run>, or its id")
    found = sorted(path.parent for path in folder.rglob("adapter/adapter_config.json"))
    if len(found) != 1:
        there = ", ".join(str(path.parent) for path in found) or "its notebook trains none, or did not get so far"
        fail(f"{folder} has {len(found)} adapters, and one is asked: name a folder with one ({there})")
    of = next((p for up in found[0].parents[:2] if (p := read_config(up).get("parameters"))), {})
    if not of.get("model"):
        fail(f"no config.json above {found[0]} names a model: copy the run's folder whole")
    try:
        require_fit(saved(of["model"]), read_adapter(found[0]))
        rank = json.loads((found[0] / "adapter_config.json").read_text())["r"]
        policy = add_lora(load_model(of["model"], thinking=of.get("thinking", False)), rank, 0)
    except (ModelError, OSError) as error:
        fail(error)
    load_adapter(policy.model, found[0])
    try:
        asked = load_task(of["task"], of.get("data")).examples("train", None, 0)
    except (ValueError, KeyError):  # its data is not here, or it has none
        asked = []
    written = [(json.dumps(e.prompt), json.dumps(e.question)[1:-1]) for e in asked]
    written.append((json.dumps([{"role": "user", "content": "?"}]), "?"))
    prompt, blank = next((prompt, text) for prompt, text in written if text in prompt)
    sampling = replace(sampling_of(of.get("task", "arithmetic")), temperature=0.0)
    with suppress(EOFError):
        for line in [question] if question else iter(lambda: input("question: ").strip(), ""):
            put = json.loads(prompt.replace(blank, json.dumps(line)[1:-1]))
            texts = [model.generate([put], 1, sampling)[0][0].text for model in (policy.anchor(), policy)]
            table = Table("without the adapter", "with it", title=Text(printed(line)))
            table.add_row(*(Text(printed(text.strip())) for text in texts))
            Console().print(table)
