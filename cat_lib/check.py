"""What can be checked before anything is paid for: answers against golds, a data file, a judge behind an endpoint."""

from __future__ import annotations

import contextlib
import io
import statistics
import sys
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
            print(*(f"  {visible(row)}" for row in bad[:_MOST]), sep="\n")
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
        print(visible(error), file=sys.stderr)
        raise typer.Exit(2) from None
    raise typer.Exit(1 if bad else 0)


_MOST = 20  # rows that are named


def _lengths(name: str, prompts: Sequence[Prompt], new_tokens: int) -> str:
    """How long the prompts are for a model, of which no weights are loaded."""
    from types import SimpleNamespace

    from transformers import AutoConfig, AutoTokenizer

    from cat_lib.models import ModelError
    from cat_lib.models.embedded import checkpoint
    from cat_lib.models.local import LocalModel

    path = str(checkpoint()) if name == "embedded" else name
    try:
        config, tokenizer = AutoConfig.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    except Exception as error:  # the hub raises a dozen unrelated types
        said = " ".join(str(error).split())[:200]
        raise ModelError(f"model={name!r}: no tokenizer to be had ({type(error).__name__}: {said})") from None
    model = LocalModel(SimpleNamespace(config=config.get_text_config()), tokenizer, name)
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
    from cat_lib.judge import Judge
    from cat_lib.models.endpoint import EndpointModel

    told: list[tuple[dict[str, Any], str]] = []
    try:
        model = EndpointModel.parse(name, attempts=1, heard=lambda fields, body: told.append((dict(fields), body)))
    except ValueError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    model.prices = {model.model: price} if price else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is refused or not counted is shown below
        (verdict,) = Judge(model, "text", attempts=1)([("Rest, and drink plenty of water.", "Says to rest.")])
    for fields, body in told:
        shown = ", ".join(f"{k}={v!r}" for k, v in fields.items() if k != "messages")
        print(f"sent     {shown}, and a prompt of {sum(len(m['content']) for m in fields['messages'])} characters")
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
