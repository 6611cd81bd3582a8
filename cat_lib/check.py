"""What can be checked before anything is paid for: answers against golds, a data file, a judge behind an endpoint."""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check answers, data or a judge before a run.")
