"""What can be checked before anything is paid for: answers against golds, a data file, a judge behind an endpoint."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cat_lib.masking import masked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cat_lib.schema import Prompt

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check answers, data or a judge before a run.")


@app.command()
def data(
    file: Annotated[str, typer.Argument(help="A file of rows; as `data` of a notebook, a hub id too.")],
    task: Annotated[str, typer.Option(help="Whose rows they are: healthbench, math500, aime24, ...")],
    model: Annotated[str, typer.Option(help="Also measure prompts against this model's context.")] = "",
) -> None:
    """Read a data file as a notebook would, and say which rows are refused and why.

    Exit code 0 if all rows are read, 1 if some are refused, 2 if the file can't be used.
    """
    from cat_lib.models import ModelError
    from cat_lib.shown import visible
    from cat_lib.tasks import load_task
    from cat_lib.tasks.arithmetic import Arithmetic
    from cat_lib.tasks.rows import BadRowsError, DataError

    bad: Sequence[DataError] = ()
    try:
        try:
            loaded = load_task(task, file)
        except BadRowsError as error:
            bad = error.bad
            advice = "; skip_bad_rows=True leaves those out" if error.good else ""
            print(f"rows read: {error.good}, refused: {len(bad)}{advice}")
            print(*(f"  {masked(visible(row))}" for row in bad[:_MOST]), sep="\n")
            if len(bad) > _MOST:
                print(f"  and {len(bad) - _MOST} more")
            if not error.good:
                raise DataError(f"{file}: no row can be used") from None
            with contextlib.redirect_stdout(io.StringIO()):  # it says once more what is skipped
                loaded = load_task(task, file, skip_bad_rows=True)
        if isinstance(loaded, Arithmetic):
            raise DataError(f"task={task!r} reads no data")
        if not bad:
            print(f"rows read: {len(loaded.rows)}, refused: 0")
        try:
            loaded.examples("heldout", None, 0)
        except ValueError as error:
            print(f"not enough to split: {error}")
        if model:
            print(_lengths(model, [e.prompt for e in loaded.rows], loaded.sampling.max_new_tokens))
    except (ValueError, ModelError) as error:
        print(masked(visible(error)), file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(1 if bad else 0)


_MOST = 20  # rows that are named


def _lengths(name: str, prompts: Sequence[Prompt], new_tokens: int) -> str:
    """How long the prompts are for a model, of which no weights are loaded."""
    from cat_lib.models import reader

    model = reader(name)
    lengths = [len(model.encode(prompt)) for prompt in prompts]
    over = sum(n + new_tokens > model.context for n in lengths)
    return (
        f"prompts of {min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}; {name} has "
        f"{model.context}, of which an answer gets {new_tokens}: "
        + (f"{over} of {len(lengths)} do not fit" if over else f"all {len(lengths)} fit")
    )


@app.command()
def judge(
    name: Annotated[str, typer.Argument(metavar="JUDGE", help="endpoint:MODEL@URL; the key from CAT_LIB_API_KEY.")],
    price: Annotated[
        tuple[float, float] | None, typer.Option(help="Dollars per million prompt and completion tokens.")
    ] = None,
) -> None:
    """Ask a judge behind an endpoint for one verdict and show how it was read; exit code 0 if there is one, else 2."""
    from cat_lib.method.judge import Judge
    from cat_lib.models import endpoint

    told: list[tuple[dict[str, Any], str]] = []
    try:
        model = endpoint.parse(name, attempts=1, heard=lambda fields, body: told.append((dict(fields), body)))
    except ValueError as error:
        print(masked(error), file=sys.stderr)
        raise typer.Exit(2) from None
    model.prices = {model.model: price} if price else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is refused or not counted is shown below
        (verdict,) = Judge(model, "text", attempts=1)([("Rest, and drink plenty of water.", "Says to rest.")])
    for fields, body in told:
        shown = ", ".join(f"{k}={v!r}" for k, v in fields.items() if k != "messages")
        print(f"sent     {shown}; prompt {fields['messages'][-1]['content'][:1500]!r}")
        print(f"came     {body[:1500]!r}{f' and {len(body) - 1500} more' if len(body) > 1500 else ''}")
    cost, refuses = model.ledger.roles["judge"], model.refuses
    names = ", ".join(f"{k} (sent as {v})" if v else f"{k} (left out)" for k, v in refuses.items())
    print(f"refuses  {names or 'no field that was sent'}")
    spent = f"${cost.usd:.6f}" if price else "no price given"
    print(f"took     {cost.seconds:.2f} s, {cost.prompt_tokens} + {cost.completion_tokens} tokens, {spent}")
    if verdict.met is None:
        print(f"no verdict: {verdict.cause}", file=sys.stderr)
        raise typer.Exit(2)
    print(f"read     {'yes' if verdict.met else 'no, where yes is right'}; reason {verdict.reason!r}")


@app.command()
def answers(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .json file of rows with gold and answer.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list of objects instead of a table.")] = False,
) -> None:
    r"""Show the canonical form of each gold and answer, and whether they are equal, as rewards and evaluation see it.

    A row has `gold` and `answer`; other keys pass through to --json. Both are the text of an answer, as it stands
    inside a box: a \boxed{...} around the whole text and all dollar signs are taken off, and a box inside other text
    is not looked for. Equal is null, and the form too, where an answer can't be read within its limits.
    Exit code 2 if a row can't be used, with one line for each that says why.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from cat_lib.tasks.answers import Lost, read
    from cat_lib.tasks.math import local_rows
    from cat_lib.tasks.rows import DataError

    bad, rows = list[DataError](), list[dict[str, object]]()
    try:
        if not file.is_file():
            raise DataError(f"{file}: no such file")
        for where, row in local_rows(file, bad):
            try:
                rows.append(_pair(row, where))
            except DataError as error:
                bad.append(error)
        if not rows and not bad:
            raise DataError(f"{file}: no rows")
    except DataError as error:
        bad = [error]
    for wrong in bad[:_SHOWN]:
        print(f"{wrong}; {_NEEDED}", file=sys.stderr)
    if bad:
        if len(bad) > _SHOWN:
            print(f"{file}: and {len(bad) - _SHOWN} more rows that can't be used", file=sys.stderr)
        raise typer.Exit(2)
    forms = read([str(row[key]) for row in rows for key in ("gold", "answer")])
    found = []
    for row, gold, answer in zip(rows, forms[::2], forms[1::2], strict=True):
        lost = isinstance(gold, Lost) or isinstance(answer, Lost)
        found.append((row, gold, answer, None if lost else gold is not None and gold == answer))
    if as_json:
        written = [
            {
                "gold": row.pop("gold"),
                "answer": row.pop("answer"),
                "gold_form": gold if isinstance(gold, str) else None,
                "answer_form": answer if isinstance(answer, str) else None,
                "equal": equal,
            }
            | row
            for row, gold, answer, equal in found
        ]
        print(json.dumps(written, ensure_ascii=False, indent=1))
        return
    table = Table("gold", "answer", "gold's form", "answer's form", "equal")
    for row, *both, equal in found:
        shown = [f"lost: {form.why}" if isinstance(form, Lost) else form or "none" for form in both]
        words = {True: "equal", False: "not equal", None: "lost"}
        table.add_row(*(Text(str(cell)) for cell in (row["gold"], row["answer"], *shown, words[equal])))
    Console().print(table)


_NEEDED = 'a row is an object like {"gold": "1/2", "answer": "0.5"}'
_SHOWN = 20  # bad rows that are printed


def _pair(row: dict[str, object], where: str) -> dict[str, object]:
    """The row, if its gold and answer are text or numbers. Raises DataError naming row and key."""
    from cat_lib.tasks.rows import DataError

    for key in ("gold", "answer"):
        if key not in row:
            raise DataError(f"{where}: no {key} (the row has {', '.join(row)[:200] or 'nothing'})")
        if isinstance(row[key], bool) or not isinstance(row[key], str | int | float):
            raise DataError(f"{where}: {key} is a {type(row[key]).__name__}, where text or a number is needed")
    for key in ("gold_form", "answer_form", "equal"):
        if key in row:
            raise DataError(f"{where}: the key {key} is what this command writes; rename it")
    return row
