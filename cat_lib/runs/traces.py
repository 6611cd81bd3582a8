"""A few groups of a run as MLflow traces: a question, its rollouts, reference, rubric and verdicts, and the rewards.

Made from the folder's tables and times (docs/reading_a_run.md). Ids follow from run and group, so what is sent again
is the same trace; MLflow's public calls would make ids of their own, and only log what failed.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_lib.files import read_lines
from cat_lib.ledger import Cost
from cat_lib.runs.pages import cut, shown
from cat_lib.shown import masked

if TYPE_CHECKING:
    import pandas as pd

TRACES = int(os.environ.get("CAT_LIB_TRACES", "20"))  # groups of a run, and those that lost a verdict; 0: none
_say_once = cache(print)
_AT_ONCE = 50  # traces of a request
_STAGES = ("policy", "anchor", "judge", "update")  # of a step, by whose work it is, in their order


def send(client: Any, folder: Path, run: Any) -> None:
    """Send the traces of a `run` of the store, at most ten times TRACES, or say why there are none.

    Raises what the store raises while it is away, so that the copy is tried again; nothing else about traces ends one.
    """
    try:
        traces = [_trace(*group, run) for group in islice(_groups(folder), 10 * TRACES)]
    except Exception as error:  # tables of another version or another hand: the rest of the run is in the store
        print(f"no traces of {folder}: {masked(f'{type(error).__name__}: {error}')[:300]}", flush=True)
        return
    try:
        for at in range(0, len(traces), _AT_ONCE):
            spans = [span for _, own in traces[at : at + _AT_ONCE] for span in own]
            client._tracing_client.log_spans(run.info.experiment_id, spans)
        for info, _ in traces:
            client._tracing_client.start_trace(info)
    except Exception as error:  # the store's own kinds
        if isinstance(error, OSError) or "failed with exception" in str(error):  # MLflow's words for a server away
            raise
        _say_once(f"this store takes no traces ({type(error).__name__}): they are left out", flush=True)


def _groups(folder: Path) -> Iterator[tuple[str, float, tuple[int, list[Cost]], dict[str, pd.DataFrame]]]:
    """TRACES groups spread over parts and steps, and each that lost a verdict: name, share of its step, that, rows."""
    import pandas as pd

    parts = sorted(path.parent for path in [*folder.glob("rollouts.parquet"), *folder.glob("*/rollouts.parquet")])
    for part in parts:
        tables = {name: part / f"{name}.parquet" for name in ("rollouts", "rubrics", "verdicts")}
        read = {name: pd.read_parquet(path) for name, path in tables.items() if path.exists()}
        if "step" not in read["rollouts"]:  # not a training's
            continue
        rows = {name: dict(iter(t.groupby(["step", "example"], sort=False))) for name, t in read.items()}
        prefix, number = "" if part == folder else f"{part.name}/", len(rows["rollouts"])
        steps, groups = _steps(folder, part, prefix), read["rollouts"].groupby("step")["example"].nunique()
        few = min(max(1, TRACES // len(parts)), number)
        spread = {i * (number - 1) // max(1, few - 1) for i in range(few)}
        for i, at in enumerate(rows["rollouts"]):
            own = {name: rows.get(name, {}).get(at, pd.DataFrame()) for name in tables}
            if i in spread or (len(own["verdicts"]) and own["verdicts"]["met"].isna().any()):
                yield f"{prefix}{at[0]}/{at[1]}", 1 / groups[at[0]], steps[at[0]], own


def _steps(folder: Path, part: Path, prefix: str) -> dict[int, tuple[int, list[Cost]]]:
    """When each step of a part ended (ms), and what each stage spent: spent.jsonl adds up over steps."""
    lines = [line for _, line in read_lines(folder / "metrics.jsonl")]
    ended = {line["step"]: line["time"] for line in lines if any(k.startswith(prefix) for k in line["metrics"])}
    spent = {line["step"]: line["spent"] for _, line in read_lines(part / "spent.jsonl")}
    total = {
        step: [Cost(**spent.get(step, {}).get(r, {})) for r in _STAGES] for end in ended for step in (end - 1, end)
    }
    return {step: (time, list(map(operator.sub, total[step], total[step - 1]))) for step, time in ended.items()}


def _trace(name: str, share: float, step: Any, tables: Mapping[str, pd.DataFrame], run: Any) -> tuple[Any, list[Any]]:
    """What the store is given: a trace's own entity, and its spans."""
    from mlflow.entities import AssessmentSource, Feedback, Span, TraceInfo, TraceLocation, TraceState

    def id_of(what: str, size: int = 8) -> str:
        return hashlib.sha256(f"{run.info.run_id} {name} {what}".encode()).digest()[:size].hex()

    begins = [step[0] * 10**6 - int(sum(cost.seconds for cost in step[1][i:]) * 1e9) for i in range(4)]  # ns
    id_, spans = f"tr-{id_of('', 16)}", list[Any]()

    def span(what: str, kind: str, stage: int, outputs: Any, among: int = 1, error: str = "", **more: Any) -> None:
        """Add one of `among` that share a stage's costs; the first is the root, which has the others' time."""
        cost, part = step[1][stage] if spans and among else Cost(), share / max(among, 1)
        own = {"traceRequestId": id_, "spanType": kind, "spanOutputs": outputs} | more
        used = {"input": cost.prompt_tokens, "output": cost.completion_tokens, "total": cost.tokens}
        own |= {"chat.tokenUsage": {f"{k}_tokens": round(n * part) for k, n in used.items()}} if cost.tokens else {}
        own |= {"llm.cost": {"total_cost": cost.usd * part}} if cost.usd else {}
        spans.append(Span.from_dict({
            "trace_id": id_, "span_id": id_of(what), "parent_span_id": id_of("group") if spans else None, "name": what,
            "start_time_unix_nano": begins[stage], "end_time_unix_nano": begins[stage + 1 if spans else 3],
            "status": {"code": "ERROR" if error else "OK", "message": error},
            "attributes": {f"mlflow.{k}": json.dumps(v) for k, v in own.items()},
        }))  # fmt: skip

    rollouts = _rows(tables["rollouts"], "question text answer finish reward reference reference_answer")
    question, rewards = rollouts[0]["question"], [r["reward"] for r in rollouts]
    span("group", "CHAIN", 0, {"rewards": rewards}, spanInputs={"question": question})
    for i, r in enumerate(rollouts):
        span(f"rollout {i}", "LLM", 0, {k: r[k] for k in ("text", "answer", "finish", "reward")}, len(rollouts))
    span("reference", "LLM", 1, {k: rollouts[0][k] for k in ("reference", "reference_answer")})
    if len(tables["rubrics"]):
        span("rubric", "LLM", 1, _rows(tables["rubrics"], "criterion points cause"), 0)  # it is in the reference's
    for i, rows in tables["verdicts"].groupby("rollout") if len(tables["verdicts"]) else ():
        verdicts = _rows(rows, "criterion points met score reason cause")
        failed = "; ".join(str(v["cause"]) for v in verdicts if v["met"] is None)
        span(f"verdicts on rollout {i}", "EVALUATOR", 2, verdicts, len(rollouts), failed)
    known, source = [r for r in rewards if r is not None], AssessmentSource("CODE", "cat_lib")
    mean = Feedback("reward", sum(known) / len(known) if known else 0.0, source=source, rationale=f"mean of {known}")
    mean.assessment_id = f"a-{id_of('reward', 16)}"
    tags = {k: v for k, v in run.data.tags.items() if k == "cat_lib.run"} | {"cat_lib.group": cut(name)}
    return TraceInfo(
        id_, TraceLocation.from_experiment_id(run.info.experiment_id), begins[0] // 10**6,
        TraceState.ERROR if any(s.status.description for s in spans) else TraceState.OK, question, f"rewards {rewards}",
        execution_duration=(begins[3] - begins[0]) // 10**6, trace_metadata={"mlflow.sourceRun": run.info.run_id},
        assessments=[mean] if known else [], tags=tags,
    ), spans  # fmt: skip


def _rows(table: pd.DataFrame, columns: str) -> list[dict[str, Any]]:
    """Rows as JSON holds them: texts cut, None for what is missing."""
    short = shown(table.reindex(columns=columns.split()))
    return list(json.loads(short.to_json(orient="records", default_handler=cut)))
