"""The adapters of a run as models in MLflow: each once, without the base model, with what one needs to use it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any


def log_adapters(client: Any, folder: Path, run_id: str, config: Mapping[str, Any], results: Mapping[Any, Any]) -> None:
    """Log each adapter of an ended run that the store has not whole. results: as sent, (key, 0) to (value, time)."""
    from mlflow.entities import Metric

    adapters = sorted(path.parent for path in folder.rglob("adapter/adapter_model.safetensors"))
    if not adapters:
        return
    experiment, base = client.get_run(run_id).info.experiment_id, str(config.get("parameters", {}).get("model"))
    try:
        known = {m.name: m for m in client.search_logged_models([experiment], f"source_run_id = '{run_id}'")}
    except Exception as error:  # an older server; one that is away fails the rest of the copy too
        print(f"adapters are not logged as models: the store takes none ({type(error).__name__})", flush=True)
        return
    for adapter in adapters:
        part = adapter.parent.relative_to(folder).as_posix().replace(".", "")
        name = re.sub(r"[^\w-]+", "_", f"{part or config['notebook']} {folder.name}")
        model = known.get(name)
        if model and model.status == "READY":
            continue
        licence = "Apache-2.0" if base == "embedded" else f"as the page of {base} says"
        about = {"base": base, "licence": licence, "run": f"{config['notebook']}/{folder.name}"}
        card = Template(Path(__file__).with_name("adapter.txt").read_text("utf-8")).substitute(about)
        note = {"mlflow.note.content": card}
        model = model or client.create_logged_model(experiment, name, run_id, note, about, "LoRA adapter")
        with tempfile.TemporaryDirectory() as place:
            for file in ("adapter_config.json", "adapter_model.safetensors"):  # not `ref`, nor PEFT's empty card
                (Path(place) / file).symlink_to(adapter.absolute() / file)
            (Path(place) / "README.md").write_text(card, "utf-8")
            client.log_model_artifacts(model.model_id, place)
        prefix = f"{part.replace('-', '_')}_" if part else ""
        own = {k: v for (k, _), v in results.items() if k.rpartition("/")[2].startswith(prefix)}
        client.log_batch(run_id, metrics=[Metric(k, *v, 0, model.model_id, run_id=run_id) for k, v in own.items()])
        client.finalize_logged_model(model.model_id, "READY")
