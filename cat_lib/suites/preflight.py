"""What can be known of a run before a kernel starts: parameters that can't work together, a model too large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cat_lib.models import ModelError
from cat_lib.models.memory import machine, require_memory
from cat_lib.runs.parameters import with_preset
from cat_lib.runs.tracking import NOTEBOOKS
from cat_lib.suites.suite import Entry, SuiteError


def preflight(notebook: Path, parameters: Mapping[str, Any], here: bool) -> float | None:
    """GB of memory that a run of this notebook needs here at most; None where we can't know.

    That is a notebook or a model that we know nothing of, and a run on other machines than this one (`here` false).
    Raises ValueError or ModelError, saying what would work, for parameters that can't.
    """
    if notebook.parent != NOTEBOOKS:
        return None
    from cat_lib import experiment  # seconds of imports
    from cat_lib.learning import settings  # seconds of imports
    from cat_lib.tasks import check_source, sampling_of

    presets = {
        "00_quickstart": settings.PRESETS,
        "02_rubrics_and_judge": settings.RUBRIC_PRESETS,
        "03_cat_rl_rubrics": settings.RUBRIC_PRESETS,
    } | experiment.PRESETS
    if notebook.stem not in presets:
        return None
    p = with_preset(presets[notebook.stem], parameters)
    check_source(p["task"], p.get("data"), p.get("split") == "transductive")
    if notebook.stem in experiment.PRESETS:
        experiment.check(p)
    elif "steps" in p:
        settings.GRPOSettings.of(p)
    work = experiment.needs(p, sampling_of(p["task"]).max_new_tokens) if here else []
    needed = [require_memory(model, most) for model, most in work]
    return max((need.total for need in needed if need), default=None)


def check_all(entries: Sequence[Entry], here: bool) -> dict[str, float | None]:
    """GB that each entry needs, by name. Raises SuiteError with all that can't work."""
    need, wrong = dict[str, float | None](), dict[str, list[str]]()
    for entry in entries:
        try:
            need[entry.name] = preflight(entry.notebook, entry.parameters, here)
        except (ValueError, ModelError) as error:
            wrong.setdefault(str(error), []).append(entry.name)
    if wrong:
        raise SuiteError("\n".join(f"{', '.join(names)}: {message}" for message, names in wrong.items()))
    return need


def require_together(gigabytes: Sequence[float | None], jobs: int, option: str = "--jobs") -> None:
    """Raises ModelError if the `jobs` largest of these runs can't be in this machine's memory at once.

    `option` is what says how many. On GPUs each run has one of its own, and the check of each is enough.
    """
    largest = sorted((g for g in gigabytes if g is not None), reverse=True)
    if not largest:
        return
    there, device, _ = machine()
    if device == "cuda" or sum(largest[:jobs]) <= there:
        return
    fit = next(n for n in range(jobs - 1, -1, -1) if sum(largest[:n]) <= there)
    raise ModelError(
        f"{jobs} at once need {sum(largest[:jobs]):.1f} GB of memory at most, and {there:.1f} GB are free: "
        f"{option} {fit or 1}"
    )
