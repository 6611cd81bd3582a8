"""The command line: `python -m cat_lib run | doctor | ui`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Compute as Teacher: run notebooks, look at runs.")


@app.command()
def run(
    notebook: Annotated[Path, typer.Argument(help="The notebook, e.g. notebooks/00_quickstart.ipynb.")],
    parameter: Annotated[list[str] | None, typer.Option("-p", help="name=value, repeatable.")] = None,
    run_id: Annotated[
        str | None, typer.Option(help="Name of the run's folder; an earlier one is continued from its checkpoint.")
    ] = None,
) -> None:
    """Execute one notebook as one tracked run; exit code 0 only if it finished."""
    from cat_lib.parameters import ParameterError
    from cat_lib.runner import ConfigurationError, RunError, run_notebook
    from cat_lib.tracking import TrackingError

    given = {}
    for entry in parameter or []:
        name, equals, value = entry.partition("=")
        if not equals:
            _fail(f"-p {entry!r}: write it as name=value", 2)
        given[name] = value
    try:
        folder = run_notebook(notebook, given, run_id, typed=False)
    except (ParameterError, ConfigurationError, TrackingError) as error:
        _fail(str(error), 2)
    except RunError as error:
        _fail(f"{error.status}: {error}\nsee {error.folder / 'executed.ipynb'}", 130 if error.status == "KILLED" else 1)
    print(f"FINISHED: {folder}")


@app.command()
def doctor() -> None:
    """Say what this machine can run, with the fix for what is missing; exit code 1 if smoke runs need one."""
    from cat_lib.doctor import checks

    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "fix": "[red]fix[/]"}
    table = Table("check", "", "found", "advice")
    states = set()
    for check in checks():
        states.add(check.state)
        table.add_row(check.name, marks[check.state], check.found, "" if check.state == "ok" else check.fix)
    Console().print(table)
    raise typer.Exit(1 if "fix" in states else 0)


@app.command()
def ui(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000) -> None:
    """The MLflow UI on 127.0.0.1, over the store that runs are written to."""
    from cat_lib.tracking import tracking_uri

    uri = tracking_uri()
    if uri.startswith("http"):
        _fail(f"runs go to the server {uri}: open it in a browser", 2)
    command = ["mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", uri]
    raise typer.Exit(subprocess.call([sys.executable, "-m", *command]))


def _fail(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app()
