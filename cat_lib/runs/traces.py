"""A few groups of a run as MLflow traces: a question, its rollouts, reference, rubric and verdicts, and the rewards.

Made from the folder's tables, by their columns alone, with the folder's times. A step's groups are worked on together:
a span is as long as the step spent on that stage, and its tokens and money are an even share of the step's.
Ids follow from run and group, so what is sent again is the same trace. MLflow's public calls would give ids of their
own, send from a thread, and only log what failed: its tracing client is called.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_lib.files import read_lines
from cat_lib.ledger import Cost
from cat_lib.runs.pages import cut, shown
from cat_lib.shown import masked

if TYPE_CHECKING:
    import pandas as pd

TRACES = int(
    os.environ.get("CAT_LIB_TRACES", "20")
)  # groups of a run, beside those that lost a verdict; 0: none at all
_COLUMNS = {"step", "example", "question", "text", "reward"}
_STAGES = ("policy", "anchor", "judge", "update")  # of a step, by whose work it is, in their order
_USAGE = ("input_tokens", "output_tokens", "total_tokens")
_WITHOUT = ("NOT_IMPLEMENTED", "ENDPOINT_NOT_FOUND", "FEATURE_DISABLED", "NotImplemented", "not supported")


def send(client: Any, folder: Path, experiment: str, run_id: str, key: str) -> None:
    """Send the traces of a run, tagged by its `key`. Raises whatever the store raises.

    A store that takes none is passed over, and so is a folder whose tables can't be read; either is said in a line.
    """
    try:
        traces = [_trace(*group, experiment, run_id, key) for group in _groups(folder)] if TRACES else []
    except Exception as error:  # tables of another version or another hand: the rest of the run is in the store
        print(f"no traces of {folder}: {masked(f'{type(error).__name__}: {error}')[:300]}", flush=True)
        return
    try:
        for info, spans in traces:
            client._tracing_client.log_spans(experiment, spans)
            client._tracing_client.start_trace(info)
    except Exception as error:  # the store's own kinds
        why = f"{type(error).__name__} {getattr(error, 'error_code', '')} {error}"
        if not any(word in why for word in _WITHOUT):
            raise
        _say_once("this store takes no traces: they are left out")


@cache
def _say_once(text: str) -> None:
    print(text, flush=True)


def _groups(folder: Path) -> Iterator[tuple[str, int, float, Mapping[str, Cost], dict[str, pd.DataFrame]]]:
    """Of all groups TRACES spread evenly, and each with a verdict that failed.

    Each with its name ("<part>/<step>/<example>"), when its step ended (ms), its share of what that spent, that by
    role, and its rows of the tables rollouts, rubrics and verdicts.
    """
    import numpy as np
    import pandas as pd

    found, none = list[tuple[str, int, float, Mapping[str, Cost], dict[str, pd.DataFrame]]](), pd.DataFrame()
    for part in sorted(path.parent for path in [*folder.glob("rollouts.parquet"), *folder.glob("*/rollouts.parquet")]):
        tables = {name: part / f"{name}.parquet" for name in ("rollouts", "rubrics", "verdicts")}
        read = {name: pd.read_parquet(path) for name, path in tables.items() if path.exists()}
        if not set(read["rollouts"]) >= _COLUMNS:
            continue  # not of a training
        rows = {name: dict(iter(t.groupby(["step", "example"], sort=False))) for name, t in read.items()}
        steps, prefix = _steps(folder, part), "" if part == folder else f"{part.name}/"
        groups = read["rollouts"].groupby("step")["example"].nunique()
        for step, example in rows["rollouts"]:
            own = {name: rows.get(name, {}).get((step, example), none) for name in tables}
            found.append((f"{prefix}{step}/{example}", *steps[step][:1], 1 / groups[step], steps[step][1], own))
    spread = set(np.linspace(0, len(found) - 1, min(TRACES, len(found))).astype(int))
    for i, group in enumerate(found):
        verdicts = group[-1]["verdicts"]
        if i in spread or (len(verdicts) and verdicts["met"].isna().any()):
            yield group


def _steps(folder: Path, part: Path) -> dict[int, tuple[int, dict[str, Cost]]]:
    """When each step of a part of the run ended, and what it spent by role: spent.jsonl adds up over steps."""
    prefix = "" if part == folder else f"{part.name}/"
    lines = [line for _, line in read_lines(folder / "metrics.jsonl")]
    ended = {line["step"]: line["time"] for line in lines if any(k.startswith(prefix) for k in line["metrics"])}
    total = {line["step"]: line["spent"] for _, line in read_lines(part / "spent.jsonl")}
    steps, before = dict[int, tuple[int, dict[str, Cost]]](), dict[str, Cost]()
    for step in sorted(ended):
        now = {role: Cost(**cost) for role, cost in total.get(step, {}).items()}
        steps[step] = ended[step], {role: cost - before.get(role, Cost()) for role, cost in now.items()}
        before = now or before
    return steps


def _trace(
    name: str, ended: int, share: float, spent: Mapping[str, Cost], tables: Mapping[str, pd.DataFrame],
    experiment: str, run_id: str, key: str,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """What the store is given: a trace's own entity, and its spans."""
    from mlflow.entities import AssessmentSource, Feedback, Span, TraceInfo, TraceLocation, TraceState

    def id_of(what: str, size: int) -> bytes:
        return hashlib.sha256(f"{run_id} {name} {what}".encode()).digest()[:size]

    trace_id = f"tr-{id_of('', 16).hex()}"
    seconds = [spent.get(role, Cost()).seconds for role in _STAGES]
    begins = [ended * 10**6 - int(sum(seconds[i:]) * 1e9) for i in range(len(_STAGES) + 1)]  # ns
    spans = list[Any]()

    def span(what: str, kind: str, stage: int, outputs: Any, among: int = 1, error: str = "", **more: Any) -> None:
        """Add one of `among` that share a stage's costs; the first is the root, which has the others' time."""
        cost, part = spent.get(_STAGES[stage], Cost()) if spans else Cost(), share / among
        used = [round(n * part) for n in (cost.prompt_tokens, cost.completion_tokens, cost.tokens)]
        own = {"traceRequestId": trace_id, "spanType": kind, "spanOutputs": outputs} | more
        own |= {"chat.tokenUsage": dict(zip(_USAGE, used, strict=True))} if cost.tokens else {}
        own |= {"llm.cost": {"total_cost": cost.usd * part}} if cost.usd else {}
        spans.append(Span.from_dict({
            "trace_id": base64.b64encode(id_of("", 16)).decode(),
            "span_id": base64.b64encode(id_of(what, 8)).decode(),
            "parent_span_id": base64.b64encode(id_of("group", 8)).decode() if spans else None,
            "name": what,
            "start_time_unix_nano": begins[stage], "end_time_unix_nano": begins[stage + 1 if spans else 3],
            "status": {"code": "STATUS_CODE_ERROR" if error else "STATUS_CODE_OK", "message": error},
            "attributes": {f"mlflow.{k}": json.dumps(v) for k, v in own.items()},
        }))  # fmt: skip

    rollouts = _rows(
        tables["rollouts"], "question", "text", "answer", "finish", "reward", "reference", "reference_answer"
    )
    question, rewards = rollouts[0].pop("question"), [r["reward"] for r in rollouts]
    span("group", "CHAIN", 0, {"rewards": rewards}, spanInputs={"question": question})
    for i, r in enumerate(rollouts):
        span(f"rollout {i}", "LLM", 0, {k: r[k] for k in ("text", "answer", "finish", "reward")}, len(rollouts))
    made = {"reference": {k: rollouts[0][k] for k in ("reference", "reference_answer")}}
    made |= {"rubric": _rows(tables["rubrics"], "criterion", "points", "cause")} if len(tables["rubrics"]) else {}
    for what, outputs in made.items():
        span(what, "LLM", 1, outputs, len(made))
    judged = list(tables["verdicts"].groupby("rollout")) if len(tables["verdicts"]) else []
    for i, rows in judged:
        verdicts = _rows(rows, "criterion", "points", "met", "score", "reason", "cause")
        failed = "; ".join(str(v["cause"]) for v in verdicts if v["met"] is None)
        span(f"verdicts on rollout {i}", "EVALUATOR", 2, verdicts, len(judged), failed)
    known = [r for r in rewards if r is not None]
    said = Feedback(
        "reward", sum(known) / len(known) if known else None, source=AssessmentSource("CODE", "cat_lib"),
        rationale=f"mean of {rewards}; None: unscorable",
    )  # fmt: skip
    said.assessment_id = f"a-{id_of('reward', 16).hex()}"
    failed = any(s.status.description for s in spans)
    info = TraceInfo(
        trace_id, TraceLocation.from_experiment_id(experiment), begins[0] // 10**6,
        TraceState.ERROR if failed else TraceState.OK, question, f"rewards {rewards}",
        execution_duration=(begins[3] - begins[0]) // 10**6, trace_metadata={"mlflow.sourceRun": run_id},
        tags={"cat_lib.run": key, "cat_lib.group": cut(name), "mlflow.traceName": cut(name)[:200]},
        assessments=[said] if known else [],
    )  # fmt: skip
    return info, spans


def _rows(table: pd.DataFrame, *columns: str) -> list[dict[str, Any]]:
    """Rows as JSON holds them: texts cut, None for what is missing."""
    found = shown(table.reindex(columns=list(columns))).to_json(orient="records", default_handler=str)
    return list(json.loads(found))
