"""Runs of a store side by side: the tables of notebook 10, and one HTML file that needs no server and no network.

The unit of a comparison is the seed; pairing by question is done in each experiment's own notebook, which has them.
All text that comes from runs is hostile: a report escapes it, and neither loads nor runs anything.
Left out: intervals pooled over groups. A run of several seeds is a group by itself, with the interval that it logged.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from scipy.special import stdtrit

from cat_lib.files import read_lines
from cat_lib.measuring.stats import Estimate, over_seeds, paired_difference
from cat_lib.measuring.tables import one_family, table
from cat_lib.runs.parameters import nearest
from cat_lib.runs.places import tracking_uri
from cat_lib.runs.store import SUITE, bare, connect
from cat_lib.shown import escaped, masked, visible

_NOTEBOOK, _PAGE, _TEXT = "10_compare", 500, 1500  # runs at once; characters of a text
_ROLES, _UNITS = ("policy", "anchor", "update", "judge"), ("tokens", "flops", "seconds", "usd")
_OWN = re.compile(  # of one execution or its outcome, not of what was executed
    r"(metric|dataset)\..*|run_id|name|status|experiment|started|(param\.)?seeds?|entry|suite|run_dir|host|commit|dirty"
    r"|code|error|collapse|stage|cat_lib\.run"
)
_ALLOWED = "params.x = '1', metrics.`1_results/x` > 0, tags.x = 'y', attributes.status = 'FINISHED', joined by `and`"


def read_runs(filter: str, experiments: list[str]) -> pd.DataFrame:
    """One row a FINISHED run, oldest first; `.attrs["others"]` counts by status the runs that are not.

    filter: MLflow's, e.g. "params.steps = '12' and tags.task = 'arithmetic'"; experiments: names, [] for all.
    Columns run_id, name, status, experiment, started (ms), each tag, `param.<x>` (text), `metric.<x>` (the last value)
    and `dataset.<context>` (how many questions). Suites' parent runs and this notebook's own are left out.
    Raises ValueError for a filter that MLflow refuses, an unknown experiment, or no finished run; TrackingError.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils import get_results_from_paginated_fn as pages

    client, store = connect(), masked(tracking_uri())
    known = pages(lambda n, token: client.search_experiments(max_results=n, page_token=token), _PAGE)
    names = {e.experiment_id: e.name for e in known}
    there = ", ".join(map(repr, sorted(names.values())))
    if unknown := [e for e in experiments if e not in names.values()]:
        hint = nearest(str(unknown[0]), names.values())
        raise ValueError(f"no experiment {unknown[0]!r} in {store}{hint} (there are {there})")
    ids = [i for i, name in names.items() if not experiments or name in experiments]
    try:
        found = pages(lambda n, token: client.search_runs(ids, filter, max_results=n, page_token=token), _PAGE)
    except MlflowException as error:
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        raise ValueError(f"{filter=}: {error.message}; allowed are {_ALLOWED}") from error
    rows = [_row(run, names[run.info.experiment_id]) for run in found]
    rows = [row for row in rows if row.get("notebook") not in (SUITE, _NOTEBOOK)]
    runs = pd.DataFrame(rows, columns=None if rows else ["status"])
    counts = {str(status): int(n) for status, n in runs["status"].value_counts().items()}
    if not counts.pop("FINISHED", 0):
        but = f" (but {counts})" if counts else ""
        raise ValueError(
            f"no finished run of {experiments=} matches {filter=}{but} in {store}; its experiments: {there}"
        )
    runs = runs[runs["status"] == "FINISHED"].sort_values(["started", "run_id"], ignore_index=True)
    runs = runs.dropna(axis=1, how="all")
    runs.attrs["others"] = counts
    return runs


def default_metric(runs: pd.DataFrame) -> str:
    """The metric with `_low` and `_high` that most runs have; a held-out, then a short one. ValueError if none has."""
    counts = {c.removeprefix("metric."): int(runs[c].notna().sum()) for c in runs if c.startswith("metric.")}
    whole = [m for m in counts if {f"{m}_low", f"{m}_high"} <= counts.keys()]
    if not whole:
        raise ValueError(f"no metric has `_low` and `_high`; name one of {', '.join(sorted(counts)) or 'none at all'}")
    return str(min(whole, key=lambda m: (-counts[m], not m.startswith("heldout"), len(m), m)))


def grouped(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """The runs that have the metric, each in the group of those that differ in nothing but the seed.

    Adds columns group (named by what differs between runs of a notebook), seed, value, low, high (the run's own
    limits), questions (`heldout_questions`, else the size of its held-out data) and superseded: a newer run has the
    same group and seed. Raises ValueError for a metric that no run has.
    """
    known = sorted(c.removeprefix("metric.") for c in runs if c.startswith("metric."))
    if metric not in known:
        raise ValueError(f"{metric=}: no run has it{nearest(metric, known)} (there are {', '.join(known) or 'none'})")
    kept = runs.dropna(subset=[f"metric.{metric}"]).reset_index(drop=True)
    nothing, seed = pd.Series(np.nan, kept.index), kept.get("seed", pd.Series("", kept.index)).fillna("").astype(str)
    about = kept.drop(columns=[c for c in kept if _OWN.fullmatch(c)]).astype(object).fillna("none").astype(str)
    about = about.assign(notebook=about.get("notebook", "none"), seeds=seed.where(seed.str.contains(","), ""))
    names = pd.Series("", kept.index)
    for column in sorted(about, key=lambda c: (c != "notebook", c.startswith("param."), c)):
        name, code = column.removeprefix("param."), pd.factorize(about[column])[0]
        tags = [tag for tag in (name, name[:-1]) if name != column and tag in about]  # that may say the same
        within = about["notebook"] if column != "notebook" else nothing.fillna(0)
        differs = about[column].groupby(within).nunique().max() > 1
        if differs and not any((pd.factorize(about[tag])[0] == code).all() for tag in tags):
            names += [f", {name}={value}" if value else "" for value in about[column]]
    value, low, high = (kept.get(f"metric.{metric}{end}", nothing) for end in ("", "_low", "_high"))
    questions = kept.get("metric.heldout_questions", nothing).fillna(kept.get("dataset.heldout", nothing))
    group = names.str.removeprefix(", ").replace("", "all runs")
    kept = kept.assign(group=group, seed=seed, value=value, low=low, high=high, questions=questions)
    return kept.assign(superseded=kept.duplicated(["group", "seed"], keep="last"))


def compare(kept: pd.DataFrame) -> pd.DataFrame:
    """One row a group of `grouped` (as method), by name; of runs with the same seed only the newest counts.

    seed lists the seeds, n counts the questions (the fewest of a run). More columns: interval (what low and high are
    over; over seeds: Student's over two or more; over questions: the run's own), runs, replaced (older runs of a seed),
    codes (versions of the code), tokens, flops, seconds, usd (all roles, mean of a run; missing where not logged).
    """
    roles = {unit: kept.reindex(columns=[f"metric.{role}_{unit}" for role in _ROLES]) for unit in _UNITS}
    tables = []
    for group, every in kept.groupby("group"):
        part = every[~every["superseded"]]
        values, seeds = part["value"].tolist(), sorted(part["seed"], key=lambda s: (len(s), s))
        low, high, over = part["low"].iloc[0], part["high"].iloc[0], f"over questions{' and seeds' * (',' in seeds[0])}"
        if len(values) > 1:
            low, high, over = np.nan, np.nan, "none: the seeds are equal"
            if _spread(values):
                estimate, over = over_seeds(values), "over seeds"
                low, high = estimate.low, estimate.high
        elif not np.isfinite([low, high]).all():
            low, high, over = np.nan, np.nan, "none"
        about = {"interval": over, "runs": len(part), "replaced": len(every) - len(part)}
        about["codes"] = part["code"].nunique() if "code" in part else 0
        about |= {unit: own.loc[part.index].sum(axis=1, min_count=1).mean() for unit, own in roles.items()}
        mean = Estimate(float(np.mean(values)), low, high, part["questions"].min())
        tables.append(table({str(group): mean}, ", ".join(seeds), **about))
    return pd.concat(tables, ignore_index=True)


def paired(kept: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """Each group of `grouped` (as method) minus the baseline, over the seeds that both have.

    seed lists these, n counts them; low and high are Student's over seeds, p (sign flips) is Holm's over the table.
    Raises ValueError for a baseline that is no group.
    """
    wide = kept[~kept["superseded"]].pivot(index="seed", columns="group", values="value").sort_index(axis=1)
    if baseline not in wide:
        raise ValueError(f"{baseline=} is no group{nearest(baseline, wide)} (there are {'; '.join(wide)})")
    tables = []
    for group in wide.columns.drop(baseline):
        both = wide[[baseline, group]].dropna()
        change = both[group] - both[baseline]
        difference = Estimate(change.mean(), np.nan, np.nan, len(both), None if len(both) < 2 else 1.0)
        if len(both) > 1 and _spread(change):
            difference = paired_difference(both[baseline], both[group])
        tables.append(table({group: difference}, ", ".join(both.index)))
    return one_family(table({}), *tables)


def _spread(values: Sequence[float]) -> bool:
    """Equal values, but for rounding, show no spread: there is no interval, and no evidence."""
    return bool(np.ptp(values) > 1e-9)


def findings(differences: pd.DataFrame, metric: str, baseline: str) -> str:
    """The table of `paired` in words, as markdown: each group above, below or undecided, with its numbers."""
    words = [f"{escaped(metric)}, paired by seed, against {escaped(baseline)}:\n"]
    for r in differences.itertuples():
        numbers = f"{r.value:+.3f} [{r.low:.3f}, {r.high:.3f}]" if np.isfinite(r.low) else "no interval"
        seeds = f"{r.n} shared seeds" + "; fewer than six decide nothing" * (r.n < 6)
        words.append(f"- {escaped(r.method)}: **{r.outcome}** ({numbers}, {seeds})")
    return "\n".join(words) if len(differences) else f"{words[0]}\n- there is no other group to compare with"


def examples(kept: pd.DataFrame, n: int) -> pd.DataFrame:
    """Rollouts of the newest run of each group of `grouped`, a column each, at n questions that most of them have.

    Of a question's last visit the lowest reward and the highest, before their texts; questions by their mean reward.
    """
    found, newest = dict[str, pd.DataFrame](), kept[~kept["superseded"]].drop_duplicates("group", keep="last")
    for run, own in _artifacts(newest, "rollouts.parquet", pd.read_parquet) if n else ():
        own = own.reindex(columns=["step", "question", "text", "reward"]).fillna({"step": 0})
        own = own[own["step"] == own.groupby("question")["step"].transform("max")].sort_values("reward", kind="stable")
        own["said"] = [f"[{r:.3g}] {str(text)[:_TEXT]}" for r, text in zip(own["reward"], own["text"], strict=True)]
        asked = own.assign(question=own["question"].astype(str).str[:_TEXT]).groupby("question")
        found[run.group] = asked.agg(lowest=("said", "first"), highest=("said", "last"), mean=("reward", "mean"))
    if not found:
        return pd.DataFrame(columns=["question", "reward"])
    every = pd.concat(dict(sorted(found.items())), axis=1)
    means = every.xs("mean", axis=1, level=1)
    order = means.mean(axis=1)[means.notna().sum(axis=1) == means.notna().sum(axis=1).max()].sort_values().index
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(n, len(order))).astype(int))]
    texts = every.loc[chosen].drop(columns="mean", level=1).stack(level=1, future_stack=True)
    return texts.rename_axis(["question", "reward"]).reset_index()


def learning(kept: pd.DataFrame, keys: Sequence[str]) -> dict[str, pd.DataFrame]:
    """By group of `grouped`: step, each key's mean over the runs that logged it, Student's limits `_low`, `_high`."""
    parts = [pd.DataFrame(columns=["group", "step", *keys])]
    for run, read in _artifacts(kept[~kept["superseded"]], "metrics.jsonl", lambda path: list(read_lines(path))):
        lines = pd.DataFrame([{"step": line["step"]} | line["metrics"] for _, line in read])
        parts.append(lines.assign(group=run.group).reindex(columns=parts[0].columns).drop_duplicates("step"))
    steps = pd.concat(parts[1:] or parts).groupby(["group", "step"])
    mean, half = steps.mean(), steps.sem() * stdtrit(steps.count() - 1, 0.975)
    wide = mean.join([(mean - half).add_suffix("_low"), (mean + half).add_suffix("_high")])
    return {str(group): part.reset_index() for group, part in wide.groupby("group")}


def _artifacts(runs: pd.DataFrame, name: str, read: Callable[[Path], Any]) -> Iterator[tuple[Any, Any]]:
    """Each run with what is read from its file of this name, one at a time; none there, or unreadable: passed over."""
    from mlflow.exceptions import MlflowException

    client = connect()
    for run in runs.itertuples():
        with tempfile.TemporaryDirectory() as folder, suppress(MlflowException, OSError, ValueError):
            yield run, read(Path(client.download_artifacts(run.run_id, name, folder)))


def export(path: Path, title: str, parts: Sequence[str | pd.DataFrame | Figure]) -> None:
    """Write one HTML file of markdown, tables and figures, whole or not at all. HTML in markdown is shown, not used.

    Raises ValueError if a part would load something, e.g. a picture of another address.
    """
    body = "\n".join(map(_html, parts))
    for e in BeautifulSoup(body, "html.parser").find_all(["script", "link", "iframe", "object", "embed", "img"]):
        if not str(e.get("src")).startswith("data:image/"):
            raise ValueError(f"a report loads nothing, but a part of it has {str(e)[:200]}")
    page = Template(Path(__file__).with_name("report.html").read_text("utf-8"))
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(page.substitute(title=html.escape(visible(title)), body=body), "utf-8")
    partial.replace(path)


def _html(part: str | pd.DataFrame | Figure) -> str:
    if isinstance(part, str):
        return str(MarkdownIt("commonmark", {"html": False}).render(part))
    if isinstance(part, pd.DataFrame):
        with pd.option_context("display.max_colwidth", None):
            rows = inert(part).to_html(index=False, na_rep="–", float_format="{:.4g}".format)
        return f'<div class="table">{rows}</div>'
    picture = io.BytesIO()
    part.savefig(picture, format="png", dpi=110, bbox_inches="tight")
    data = base64.b64encode(picture.getvalue()).decode()
    return f'<p><img alt="{html.escape(part.get_suptitle() or "figure")}" src="data:image/png;base64,{data}"></p>'


def inert(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose text no terminal, page or spreadsheet obeys; for a page or LaTeX it is to be escaped besides."""
    shown = table.rename(columns=visible).map(lambda v: visible(v) if isinstance(v, str) else v)
    return shown.replace(r"^(?=[=+@-])(?![+-][\d.]+$)", "'", regex=True)


def _row(run: Any, experiment: str) -> dict[str, Any]:
    row: dict[str, Any] = {k: v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
    row |= {f"param.{k}": v for k, v in run.data.params.items()}
    row |= {f"metric.{bare(k)}": v for k, v in run.data.metrics.items()}
    for used in run.inputs.dataset_inputs:
        context = {tag.key: tag.value for tag in used.tags}.get("mlflow.data.context")
        row[f"dataset.{context}"] = json.loads(used.dataset.profile or "{}").get("num_rows")
    about = {"run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status}
    return row | about | {"experiment": experiment, "started": run.info.start_time}
