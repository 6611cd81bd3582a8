"""The command line: `python -m cat_lib run | suite | import | export | chat | check | doctor | ui`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from cat_lib import check
from cat_lib.chat import chat
from cat_lib.doctor import checks
from cat_lib.learning.settings import GRPOSettings
from cat_lib.models import ModelError
from cat_lib.runs.children import serve
from cat_lib.runs.folder import BusyError, RunError, read_config
from cat_lib.runs.found import found
from cat_lib.runs.mirror import import_run
from cat_lib.runs.parameters import ParameterError
from cat_lib.runs.places import tracking_uri
from cat_lib.runs.runner import run_notebook
from cat_lib.runs.store import TrackingError
from cat_lib.suites import batch, executors, preflight, progress
from cat_lib.suites.entry import spare_grammar
from cat_lib.suites.suite import SuiteError, load_suite

spare_grammar()
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Compute as Teacher: run notebooks, look at runs.")
app.add_typer(check.app, name="check")
app.command()(chat)


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
        folder = run_notebook(notebook, given, run_id, typed=False)
    except (ParameterError, TrackingError, BusyError) as error:
        check.fail(error)
    except OSError as error:
        check.fail(f"the run's folder can't be written: {error}")
    except RunError as error:
        code = 130 if error.status == "KILLED" else 1
        check.fail(f"{error.status}: {error}\nsee {error.folder / 'executed.ipynb'}", code=code)
    further = f"chat '{folder}'" if (folder / "adapter").exists() else "ui"
    print(f"FINISHED: {folder}", *found(folder), f"next: python -m cat_lib {further}", sep="\n")


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
        runs = f"-p 'experiments=[\"suite/{loaded.name}\"]'"
        print(f"next: python -m cat_lib run notebooks/10_compare.ipynb {runs}")
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
def doctor() -> None:
    """Say what this machine can run, with the fix for what is missing; exit code 1 if smoke runs need one."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fix": "[red]fix[/]"}
    table = Table("check", "", "found", "advice")
    states = set()
    for known in checks():
        states.add(known.state)
        table.add_row(known.name, marks[known.state], known.found, "" if known.state == "ok" else known.fix)
    Console().print(table)
    raise typer.Exit(1 if "fix" in states else 0)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """The MLflow UI on 127.0.0.1, over the store that runs are written to."""
    uri = tracking_uri()
    if uri.startswith("http"):
        check.fail(f"runs go to the server {uri}: open it in a browser")
    command = [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port)]
    # not among the words of the command: whoever lists processes sees those
    raise typer.Exit(serve(command, os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}))


def _pair(entry: str, option: str) -> tuple[str, str]:
    name, equals, value = entry.partition("=")
    if not equals:
        check.fail(f"{option} {entry!r}: write it as name=value")
    return name, value


if __name__ == "__main__":
    app()
