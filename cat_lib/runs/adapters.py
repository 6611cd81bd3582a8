"""The adapters of a run as models in MLflow: each once, without the base model, with what one needs to use it."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FILES = ("adapter_config.json", "adapter_model.safetensors")  # not `ref`, a frozen copy, nor PEFT's empty card
_CARD = """LoRA adapter of {base} (licence: {licence}), trained by the run {run}.

    from cat_lib.models import saved; from peft import PeftModel; from transformers import AutoModelForCausalLM
    base = AutoModelForCausalLM.from_pretrained(saved({base!r}))
    model = PeftModel.from_pretrained(base, "the folder with this file")

{numbers}
"""


def log_adapters(
    client: Any, folder: Path, run_id: str, config: Mapping[str, Any], results: Mapping[str, float]
) -> None:
    """Log each adapter of an ended run that the store has not; of one that was cut off, the rest."""
    from mlflow.entities import Metric

    run, base = client.get_run(run_id), str(config.get("parameters", {}).get("model"))
    known = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    for adapter in sorted(path.parent for path in folder.rglob("adapter/adapter_config.json")):
        part = adapter.parent.relative_to(folder).as_posix().replace(".", "")
        name = re.sub(r"[^\w-]+", "_", f"{part or config['notebook']} {folder.name}")
        model = next((m for m in known if m.name == name), None)
        if model and model.status == "READY":
            continue
        licence = "Apache-2.0" if base == "embedded" else f"as {base}'s own page says"
        about = {"base_model": base, "licence": licence, "kind": "LoRA adapter"}
        own = {k: v for k, v in results.items() if k.startswith(f"{part.replace('-', '_')}_" if part else "")}
        numbers = "\n".join(f"- `{key}`: {value:.4g}" for key, value in own.items())
        card = _CARD.format(base=base, licence=licence, run=f"{config['notebook']}/{folder.name}", numbers=numbers)
        model = model or client.create_logged_model(
            run.info.experiment_id, name, run_id, {"mlflow.note.content": card}, about, "adapter"
        )
        with tempfile.TemporaryDirectory() as place:
            for file in _FILES:
                (Path(place) / file).symlink_to(adapter / file)
            (Path(place) / "README.md").write_text(card, "utf-8")
            client.log_model_artifacts(model.model_id, place)
        # as the run has them, by name and time, or it would have them twice
        there = {key.rpartition("/")[2]: key for key in run.data.metrics}
        when = config.get("ended") or config["started"]
        logged = [Metric(there.get(k, k), v, when, 0, model.model_id, run_id=run_id) for k, v in own.items()]
        client.log_batch(run_id, metrics=logged)
        client.finalize_logged_model(model.model_id, "READY")
