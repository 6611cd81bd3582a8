"""Where things are: the notebooks, their results, and the store that holds a copy of these."""

from __future__ import annotations

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUNS = ROOT / "results" / "runs"
NOTEBOOKS = ROOT / "notebooks"


def tracking_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else the SQLite file under results/, always absolute."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{ROOT / 'results' / 'mlflow.db'}"
