"""The command line: `python -m cat_lib run | suite | import | export | chat | check | doctor | ui`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cat_lib import check
from cat_lib.doctor import checks
from cat_lib.learning.settings import GRPOSettings
from cat_lib.models import ModelError, require_sampler
from cat_lib.runs import places
from cat_lib.runs.children import serve
from cat_lib.runs.folder import BusyError, RunError, read_config
from cat_lib.runs.mirror import import_run
from cat_lib.runs.parameters import nearest
from cat_lib.runs.runner import run_notebook
from cat_lib.runs.store import TrackingError, connect
from cat_lib.shown import printed
from cat_lib.suites import batch, executors, preflight, progress
from cat_lib.suites.entry import spare_grammar
from cat_lib.suites.suite import SuiteError, load_suite
from cat_lib.tasks import load_task, sampling_of

spare_grammar()
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Compute as Teacher: run notebooks, look at runs.")
app.add_typer(check.app, name="check")


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="The notebook, e.g. notebooks/00_quickstart.ipynb.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value, repeatable.")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run's folder; an earlier one is continued from its checkpoint.")
    ] = None,
) -> None:
    """Execute one notebook as one tracked run; exit code 0 only if it finished."""
    given = dict(_pair(entry, "-p") for entry in parameter or [])
    try:
        if "://" in given.get("rollouts", ""):
            require_sampler(given["rollouts"])  # before it is written down: it may hold a secret
        folder = run_notebook(notebook, given, run_id, typed=False)
    except (ValueError, TrackingError, BusyError) as error:
        check.fail(error)
    except OSError as error:
        check.fail(f"the run's folder can't be written: {error}")
    except RunError as error:
        code = 130 if error.status == "KILLED" else 1
        check.fail(f"{error.status}: {error}\nsee {error.folder / 'executed.ipynb'}", code=code)
    further = f"chat '{folder}'" if (folder / "adapter").exists() else "ui"
    print(f"FINISHED: {folder}", *progress.found(folder), f"next: python -m cat_lib {further}", sep="\n")


@app.command()
def suite(
    file: Annotated[Path, typer.Argument(help="The suite, e.g. notebooks/suites/smoke.yaml.")],
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once (local: one a GPU, or 1; clusters: all that fit).")
    ] = None,
    executor: Annotated[Literal["local", "ray", "slurm"], typer.Option(help="Where runs execute.")] = "local",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, print the runs, start none.")] = False,
    only: Annotated[str, typer.Option(help="Only entries of this name, or shell pattern.")] = "",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Only what failed or was killed before; leave what never began.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="Runs that a suite may make.")] = 500,
    address: Annotated[str, typer.Option(help="Ray: the cluster's address.")] = "auto",
    cpus: Annotated[int, typer.Option(min=1, help="Ray and Slurm: cores of a run.")] = 1,
    gpus: Annotated[float, typer.Option(min=0, help="Ray and Slurm: GPUs of a run.")] = 0,
    slurm: Annotated[list[str] | None, typer.Option(help="Slurm: name=value, as partition=gpu or time=600.")] = None,
) -> None:
    """Run a suite of notebooks; the same command again continues it. Exit code 0 only if no chosen entry failed."""
    console, here = Console(), executor == "local"
    try:
        loaded = load_suite(file, limit)
        states = batch.plan(loaded.only(only), retry_failed)
        waiting = [s.entry for s in states if s.word == batch.Word.WAITING]
        need = preflight.check_all(waiting, here, GRPOSettings.of)
        if dry_run:
            console.print(progress.planned(states, need))
            return
        if executor == "ray":
            runner = executors.ray(jobs, address, cpus, gpus)
        elif executor == "slurm":
            options = dict(_pair(entry, "--slurm") for entry in slurm or [])
            runner = executors.slurm(jobs, loaded.folder / "slurm", cpus, gpus, options)
        else:
            runner = executors.local(jobs)
            preflight.require_together(list(need.values()), runner.jobs)
        with progress.progress(console) as show:
            stopped = batch.run_suite(loaded, states, runner, show)
    except (SuiteError, ModelError, TrackingError, executors.ExecutorError) as error:
        check.fail(error)
    print("\n".join(progress.summary(states)))
    failed = any(s.word in (batch.Word.FAILED, batch.Word.KILLED) for s in states)
    if not failed and not stopped:
        print(f"next: python -m cat_lib run notebooks/10_compare.ipynb -p 'experiments=[\"suite/{loaded.name}\"]'")
    raise typer.Exit(130 if stopped else 1 if failed else 0)


@app.command("import")
def import_(
    folders: Annotated[list[Path], typer.Argument(help="Folders of runs, e.g. results/runs/00_quickstart/*.")],
) -> None:
    """Copy runs from their folders into the store that MLFLOW_TRACKING_URI names; again changes nothing."""
    failed = False
    for folder in folders:
        try:
            print(f"{folder}: run {import_run(folder.resolve())}")
        except (ValueError, TrackingError, OSError) as error:
            failed = True
            print(error, file=sys.stderr)
    raise typer.Exit(2 if failed else 0)


@app.command()
def export(
    adapter: Annotated[Path, typer.Argument(help="The adapter's folder, e.g. results/runs/00_quickstart/.../adapter.")],
    out: Annotated[Path, typer.Argument(help="What to make; it must not be there yet.")],
    kind: Annotated[Literal["adapter", "merged", "gguf"], typer.Option(help="What other programs load.")] = "merged",
    model: Annotated[str, typer.Option(help="What it was trained on; else the run's config.json says.")] = "",
) -> None:
    """Make a trained adapter into what other programs load; kept only if it answers as the adapter does."""
    from cat_lib.models.export import export

    configs = [read_config(folder) for folder in adapter.absolute().parents[:2]]  # of the run, whose part this may be
    name = model or next(filter(None, (c.get("parameters", {}).get("model") for c in configs)), "")
    try:
        if not name:
            raise ValueError(f"no run's config.json above {adapter} names a model: name it by --model")
        print(export(adapter, out, kind, name))
    except (ValueError, ModelError, OSError) as error:
        check.fail(error)
    print(f"made {out}")


@app.command()
def chat(
    run: Annotated[str, typer.Argument(help="Whose adapter answers: a run's folder, or its id.")],
    question: Annotated[str, typer.Argument(help="Without it, one after another until an empty line.")] = "",
) -> None:
    """Ask a run's base model, and the same with the run's adapter, side by side."""
    from cat_lib.learning.checkpoints import load_adapter
    from cat_lib.learning.lora import add_lora
    from cat_lib.models import load_model, saved
    from cat_lib.models.merging import read_adapter, require_fit

    known = {folder.name: folder for folder in places.RUNS.glob("*/*/")}
    folder = Path(run).absolute() if Path(run).is_dir() else known.get(run)
    if not folder:
        check.fail(f"no run {run!r}{nearest(run, known)}; name its folder, results/runs/<notebook>/<run>, or its id")
    found = sorted(path.parent for path in folder.rglob("adapter/adapter_config.json"))
    if len(found) != 1:
        there = ", ".join(str(path.parent) for path in found) or "its notebook trains none, or did not get so far"
        check.fail(f"{folder} has {len(found)} adapters, and one is asked: name a folder with one ({there})")
    of: dict[str, Any] = next((p for up in found[0].parents[:2] if (p := read_config(up).get("parameters"))), {})
    if not of.get("model"):
        check.fail(f"no config.json above {found[0]} names a model: copy the run's folder whole")
    try:
        require_fit(saved(of["model"]), read_adapter(found[0]))
        rank = json.loads((found[0] / "adapter_config.json").read_text())["r"]
        asked = load_task(task := of.get("task", "arithmetic"), of.get("data")).examples("train", None, 0)
        policy = add_lora(load_model(of["model"], thinking=of.get("thinking", False)), rank, 0)
    except (ModelError, OSError, ValueError) as error:
        check.fail(error)
    load_adapter(policy.model, found[0])
    written = [(json.dumps(e.prompt), json.dumps(e.question)[1:-1]) for e in asked]
    written.append((json.dumps([{"role": "user", "content": "?"}]), "?"))
    prompt, blank = next((prompt, text) for prompt, text in written if text in prompt)
    sampling = replace(sampling_of(task), temperature=0.0)
    for line in [question] if question else iter(lambda: input("question: ").strip(), ""):
        put = json.loads(prompt.replace(blank, json.dumps(line)[1:-1]))
        texts = [model.generate([put], 1, sampling)[0][0].text for model in (policy.anchor(), policy)]
        table = Table("without the adapter", "with it", title=Text(printed(line)))
        table.add_row(*(Text(printed(text.strip())) for text in texts))
        Console().print(table)


@app.command()
def doctor() -> None:
    """Say what this machine can run, with the fix for what is missing; exit code 1 if smoke runs need one."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fix": "[red]fix[/]"}
    table = Table("check", "", "found", "advice")
    known = list(checks())
    for one in known:
        table.add_row(one.name, marks[one.state], one.found, "" if one.state == "ok" else one.fix)
    Console().print(table)
    raise typer.Exit(int(any(one.state == "fix" for one in known)))


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """The MLflow UI on 127.0.0.1, over the store that runs are written to."""
    uri = places.tracking_uri()
    if uri.startswith("http"):
        check.fail(f"runs go to the server {uri}: open it in a browser")
    try:
        experiments = connect().search_experiments(max_results=1000)
    except TrackingError as error:
        check.fail(error)
    for e in reversed(experiments):  # links that don't say so, as the server's own, open on GenAI's pages
        page = f"http://127.0.0.1:{port}/#/experiments/{e.experiment_id}/runs?workflowType=machine_learning"
        typer.echo(f"{e.name}: {page}")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--uvicorn-opts", "--log-level warning"]
    # not among the words of the command: whoever lists processes sees those
    raise typer.Exit(serve(command, os.environ | {"MLFLOW_BACKEND_STORE_URI": uri, "PYTHONWARNINGS": "ignore"}))


def _pair(entry: str, option: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals:
        check.fail(f"{option} {entry!r}: write it as name=value")
    return name, value


if __name__ == "__main__":
    app()
