"""Runs compared: read from the store, tabled as papers do, and written into one HTML file that needs no server.

The unit is the seed: a configuration's interval is over its seeds, and two configurations are paired by seed. Pairing
by question is what the experiments' own notebooks do, which have the answers. Whatever runs contain is data: it is
escaped, and the file may load and execute nothing (a content security policy says so to the browser as well).

Left out: ranking, stars for significance, and any winner whose interval holds zero.
"""

from __future__ import annotations

import base64
import html
import io
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats as sp

from cat_lib.findings import word
from cat_lib.parameters import nearest
from cat_lib.stats import holm, over_seeds
from cat_lib.store import SUITE, connect, without_password
from cat_lib.tracking import tracking_uri

NOTEBOOK = "10_compare"
_COST = ("tokens", "flops", "seconds")
_ROLES = ("policy", "anchor", "judge", "update")
_SHOWN = ["example", "question", "text", "reference", "reward"]
_LONGEST = 400  # characters of a rollout shown
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
    "style-src 'unsafe-inline'; font-src data:\">"
)

Part = Any  # plain text, a pandas table or a matplotlib figure


def read_runs(filter: str = "", experiments: Sequence[str] = ()) -> pd.DataFrame:
    """Runs of the store, newest first: columns run_id, name, status, experiment, tag.*, param.*, metric.*.

    `filter` is MLflow's (`tags.model = 'embedded' and metrics.score > 0.5`), `experiments` names them; none is all. A
    suite's parent and this notebook's own runs are left out. Raises ValueError for a filter MLflow can't read, an
    experiment that is not there, or no run at all; TrackingError for a store that can't be used.
    """
    client = connect()
    known = {e.name: e.experiment_id for e in client.search_experiments()}
    for name in experiments:
        if name not in known:
            raise ValueError(f"no experiment {name!r}{nearest(name, known)}; there are {', '.join(sorted(known))}")
    ids, rows, token = [known[name] for name in experiments or known], list[dict[str, Any]](), ""
    while True:
        try:
            page = client.search_runs(ids, filter, max_results=500, page_token=token or None)
        except Exception as error:  # MLflow's parser raises several kinds
            raise ValueError(f"filter={filter!r}: {' '.join(str(error).split())[:300]}") from error
        rows += [_row(run) for run in page if run.data.tags.get("notebook") not in (SUITE, NOTEBOOK)]
        token = page.token
        if not token:
            break
    if not rows:
        raise ValueError(
            f"no run in {without_password(tracking_uri())} matches filter={filter!r}, experiments={list(experiments)}; "
            f"there are the experiments {', '.join(sorted(known))}"
        )
    return pd.DataFrame(rows)


def _row(run: Any) -> dict[str, Any]:
    about = {"run_id": run.info.run_id, "name": run.info.run_name, "status": run.info.status}
    about |= {"started": run.info.start_time, "experiment": run.info.experiment_id}
    tags = {f"tag.{k}": v for k, v in run.data.tags.items() if not k.startswith("mlflow.")}
    parameters = {f"param.{k}": v for k, v in run.data.params.items()}
    return about | tags | parameters | {f"metric.{k}": v for k, v in run.data.metrics.items()}


def usual_metric(runs: pd.DataFrame) -> str:
    """The metric with an interval (`_low`, `_high`) that most runs have; without one, the commonest of all.

    Raises ValueError if the runs have logged none.
    """
    names = [c.removeprefix("metric.") for c in runs if c.startswith("metric.") and "system/" not in c]
    bounded = [n for n in names if f"{n}_low" in names and f"{n}_high" in names] or names
    if not bounded:
        raise ValueError(f"none of {len(runs)} runs has logged a metric; widen the filter")
    return str(max(bounded, key=lambda n: int(runs[f"metric.{n}"].notna().sum())))


def configured(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Finished runs that have `metric`, with `kind`: what was varied between them, less the seed; and `seed`, `value`.

    Of runs of one kind and seed the newest is kept. Raises ValueError if the metric is not there, naming the nearest.
    """
    column = f"metric.{metric}"
    if column not in runs:
        names = [c.removeprefix("metric.") for c in runs if c.startswith("metric.")]
        raise ValueError(
            f"metric={metric!r} is in no run{nearest(metric, names)}; there are {', '.join(sorted(names)[:40])}"
        )
    found = runs[(runs["status"] == "FINISHED") & runs[column].notna()].copy()
    if found.empty:
        raise ValueError(f"metric={metric!r}: no run that finished has it; statuses are {sorted(set(runs['status']))}")
    keys = [
        c for c in found if c == "tag.notebook" or (c.startswith("param.") and c not in ("param.seed", "param.seeds"))
    ]
    varied = [c for c in keys if found[c].nunique(dropna=False) > 1]
    found["kind"] = [
        ", ".join(f"{c.split('.', 1)[1]}={row[c]}" for c in varied if pd.notna(row[c])) or "all runs"
        for _, row in found.iterrows()
    ]
    blank = pd.Series(["-"] * len(found), index=found.index)
    found["seed"] = found.get("tag.seed", blank).fillna("-")
    found["value"] = found[column].astype(float)
    found = found.sort_values("started", ascending=False).drop_duplicates(["kind", "seed"])
    return found.sort_values(["kind", "seed"]).reset_index(drop=True)


def summary(found: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a kind: mean, low, high, interval (what it is over), n (questions), seeds, tokens, flops, seconds.

    found: of `configured`. Several seeds: Student's interval over them; one: the run's own over questions, if it logged
    one, else none. Costs are sums over roles, mean a run.
    """
    rows = []
    for kind, part in found.groupby("kind", sort=False):
        row: dict[str, Any] = {"kind": kind, "mean": part["value"].mean(), "low": np.nan, "high": np.nan}
        low, high = f"metric.{metric}_low", f"metric.{metric}_high"
        if len(part) > 1 and not _spread(part["value"]):
            row["interval"] = "none: seeds agree"
        elif len(part) > 1:
            over = over_seeds(part["value"].tolist())
            row |= {"low": over.low, "high": over.high, "interval": "seeds"}
        elif low in part and high in part and part[[low, high]].notna().all(axis=None):
            row |= {"low": part[low].iloc[0], "high": part[high].iloc[0], "interval": "questions"}
        else:
            row["interval"] = "none"
        row["n"] = next((part[c].iloc[0] for c in ("metric.heldout_questions", "param.questions") if c in part), "?")
        row["seeds"] = ", ".join(part["seed"])
        for what in _COST:
            columns = [c for r in _ROLES if (c := f"metric.{r}_{what}") in part]
            row[what] = part[columns].sum(axis=1).mean() if columns else np.nan
        rows.append(row)
    order = ["kind", "mean", "low", "high", "interval", "n", "seeds", *_COST]
    return pd.DataFrame(rows)[order]


def paired(found: pd.DataFrame, baseline: str | None = None) -> pd.DataFrame:
    """Each kind minus the baseline over the seeds that both have: difference, low, high, n (seeds), p, p_holm, verdict.

    Student's interval and test over seeds. Fewer than two shared seeds, or seeds that agree to the last digit and so
    show no spread to judge by, are "undecided", without an interval.
    `baseline` is a kind, the first if None. Raises ValueError for one that is not there.
    """
    kinds = list(dict.fromkeys(found["kind"]))
    first = baseline or kinds[0]
    if first not in kinds:
        raise ValueError(f"baseline={first!r} is no configuration{nearest(first, kinds)}; there are {'; '.join(kinds)}")
    by_seed = found.pivot(index="seed", columns="kind", values="value")
    rows = []
    for kind in (k for k in kinds if k != first):
        differences = (by_seed[kind] - by_seed[first]).dropna()
        row: dict[str, Any] = {"kind": kind, "n": len(differences), "seeds": ", ".join(differences.index)}
        row["difference"] = differences.mean()
        if len(differences) > 1 and _spread(differences):
            over, p = over_seeds(differences.tolist()), float(sp.ttest_1samp(differences, 0).pvalue)
            row |= {"low": over.low, "high": over.high, "p": p}
        rows.append(row)
    table = pd.DataFrame(rows, columns=["kind", "difference", "low", "high", "n", "seeds", "p"])
    tested = table.dropna(subset=["p"]).set_index("kind")["p"]
    table["p_holm"] = table["kind"].map(holm(tested.to_dict()) if len(tested) else {}).astype(float)
    table["verdict"] = [
        word(r.difference, r.low, r.high, r.p_holm, "higher", "lower") if pd.notna(r.p) else "undecided"
        for r in table.itertuples()
    ]
    return table


def _spread(values: pd.Series) -> bool:
    """Whether values differ by more than rounding: Student's interval is made of their spread."""
    return bool(np.ptp(values) > 1e-9)


def in_words(table: pd.DataFrame, baseline: str, metric: str) -> str:
    """The paired table in one paragraph of plain text."""
    if table.empty:
        return f"One configuration only, {baseline}: nothing to compare it with."
    parts = []
    for row in table.itertuples():
        numbers = f"{row.difference:+.3f} [{row.low:.3f}, {row.high:.3f}], " if pd.notna(row.p) else ""
        parts.append(f"{row.kind}: {row.verdict} ({numbers}{row.n} shared seeds)")
    return f"{metric} against {baseline}, paired by seed: " + "; ".join(parts) + "."


def examples(found: pd.DataFrame, n: int) -> pd.DataFrame:
    """The first `n` rollouts of each kind whose newest run kept any: kind, question, text, reference, reward."""
    client, parts = connect(), list[pd.DataFrame]()
    for kind, part in found.groupby("kind", sort=False):
        run = part.sort_values("started").iloc[-1]
        if not n or "rollouts.parquet" not in {a.path for a in client.list_artifacts(run["run_id"])}:
            continue
        with tempfile.TemporaryDirectory() as folder:
            table = pd.read_parquet(client.download_artifacts(run["run_id"], "rollouts.parquet", folder))
        parts.append(table[[c for c in _SHOWN if c in table]].head(n).assign(kind=kind))
    if not parts:
        return pd.DataFrame(columns=["kind", *_SHOWN])
    table = pd.concat(parts, ignore_index=True)
    shortened = {c: table[c].map(lambda t: t if len(str(t)) <= _LONGEST else str(t)[:_LONGEST] + " ...") for c in table}
    return pd.DataFrame(shortened)[["kind", *(c for c in table if c != "kind")]]


def plain(text: str) -> str:
    """Text that Markdown, HTML and a figure's labels show as it is: no markup, no formula, no line of its own."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return re.sub(r"([\\`*_{}\[\]()#+!|~$<>&:@-])", lambda m: f"&#{ord(m[1])};", flat)


def label(text: str, most: int = 60) -> str:
    """Text for a figure: short, and with no formula in it."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return (flat if len(flat) <= most else flat[: most - 3] + "...").replace("$", r"\$")


def export(path: Path, title: str, parts: Sequence[Part]) -> Path:
    """Write paragraphs, tables and figures, in order, as one HTML file that loads nothing and runs nothing.

    Strings are plain text, or headings behind "## "; markup in them, and in tables, is shown as it stands.
    """
    import nbformat
    from nbconvert import HTMLExporter

    v4 = nbformat.v4
    cells = [v4.new_markdown_cell(f"# {plain(title)}")]
    for part in parts:
        if isinstance(part, str):
            heading = "## " if part.startswith("## ") else ""
            cells.append(v4.new_markdown_cell(heading + plain(part.removeprefix(heading))))
            continue
        if isinstance(part, Figure):
            buffer = io.BytesIO()
            part.savefig(buffer, dpi=130, bbox_inches="tight", format="png")
            data = {"image/png": base64.b64encode(buffer.getvalue()).decode()}
        else:
            data = {"text/html": part.to_html(index=False, escape=True, na_rep="-", float_format=lambda x: f"{x:.4g}")}
        cells.append(v4.new_code_cell("", outputs=[v4.new_output("display_data", data)], execution_count=None))
    exporter = HTMLExporter(  # type: ignore[no-untyped-call]
        exclude_input=True, exclude_output_prompt=True, embed_images=True, mathjax_url=""
    )
    body, _ = exporter.from_notebook_node(v4.new_notebook(cells=cells))
    body = re.sub(r"<script\b.*?</script\s*>", "", body, flags=re.DOTALL | re.IGNORECASE)  # the template's own
    body = re.sub(
        r"<title>.*?</title>", f"<title>{html.escape(title)}</title>{_POLICY}", body, count=1, flags=re.DOTALL
    )
    partial = path.with_suffix(".partial")
    partial.write_text(body)
    partial.replace(path)
    return path
