"""What can be checked before anything is paid for: answers, a data file and who has seen it, a judge, an engine."""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import warnings
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cat_lib.method.judge import Judge
from cat_lib.models import LEARNERS, ModelError, endpoint, load_model, reader
from cat_lib.schema import Lost
from cat_lib.shown import masked, visible
from cat_lib.tasks import load_task
from cat_lib.tasks.answers import read, same
from cat_lib.tasks.arithmetic import Arithmetic
from cat_lib.tasks.rows import NAMED, Bad, DataError, Given, file_rows, local_file, usable

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check answers, data, judge or engine first.")
_WRITTEN = ("gold_form", "answer_form", "equal")  # what `check answers` adds to a row


@app.command()
def data(
    file: Annotated[str, typer.Argument(help="A file of rows; as `data` of a notebook, a hub id or a URL too.")],
    task: Annotated[str, typer.Option(help="Whose rows they are: healthbench, math500, aime24, ...")],
    model: Annotated[str, typer.Option(help="Also measure prompts against this model's context.")] = "",
) -> None:
    """Read a data file as a notebook would, and say which rows are refused and why.

    Exit code 0 if all rows are read, 1 if some are refused, 2 if the file can't be used.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it says too what it skips
            loaded = load_task(task, file, skip_bad_rows=True)
        refused, why = loaded.skipped.get("skipped", 0), loaded.skipped.get("why", [])
        advice = "; skip_bad_rows=True leaves those out" if refused else ""
        print(f"rows read: {len(loaded.rows)}, refused: {refused}{advice}")
        for row in why:
            print(f"  {visible(row)}")
        if refused > len(why):
            print(f"  and {refused - len(why)} more")
        try:
            loaded.examples("heldout", None, 0)
        except ValueError as error:
            print(f"not enough to split: {error}")
        if model:
            of, new = reader(model), loaded.sampling.max_new_tokens  # no weights are loaded
            lengths = [len(of.encode(e.prompt)) for e in loaded.rows]
            over = sum(n + new > of.context for n in lengths)
            fit = f"{over} of {len(lengths)} do not fit" if over else f"all {len(lengths)} fit"
            span = f"{min(lengths)} to {max(lengths)} tokens, median {statistics.median(lengths):g}"
            print(f"prompts of {span}; {model} has {of.context}, of which an answer gets {new}: {fit}")
    except (ValueError, ModelError) as error:
        fail(error)
    raise typer.Exit(1 if refused else 0)


@app.command()
def judge(
    name: Annotated[str, typer.Argument(metavar="JUDGE", help="endpoint:MODEL@URL; the key from CAT_LIB_API_KEY.")],
    price: Annotated[
        tuple[float, float] | None, typer.Option(help="Dollars per million prompt and completion tokens.")
    ] = None,
) -> None:
    """Ask a judge behind an endpoint for one verdict and show how it was read; exit code 0 if there is one, else 2."""
    told: list[tuple[dict[str, Any], str]] = []
    try:
        model = endpoint.parse(name, attempts=1, heard=lambda fields, body: told.append((dict(fields), body)))
    except ValueError as error:
        fail(error)
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
        fail(f"no verdict: {verdict.cause}")
    print(f"read     {'yes' if verdict.met else 'no, where yes is right'}; reason {verdict.reason!r}")


@app.command()
def engine(
    name: Annotated[str, typer.Argument(metavar="ENGINE", help=f"What learns and samples: {', '.join(LEARNERS)}.")],
    model: Annotated[str, typer.Option(help="As `model` of a notebook.")] = "embedded",
    rollouts: Annotated[str, typer.Option(help="What samples in its place: vllm, or a server's URL.")] = "engine",
) -> None:
    """Train a minute with this engine: is what samples the policy, and what learns the policy? Exit code 1 if not."""
    from cat_lib.learning import canary, sampler

    try:
        if name not in LEARNERS:
            raise ValueError(f"engine={name!r} does not learn; allowed are {', '.join(LEARNERS)}, with --rollouts vllm")
        learner: Any = load_model(name=model, engine=name, rollouts=rollouts)
        if learner.sampler:
            found = sampler.samples_the_policy(learner, [e.prompt for e in Arithmetic().examples("train", 8, 0)])
            gaps = ", ".join(f"{sampler.WORDS[name]} {found[name]:.4f}" for name in sampler.WORDS)
            print(f"samples  gap {gaps}, {found['moved']:.2f} from the base; nats a token, allowed {sampler.MOST_GAP}")
        before, after = canary.learns_the_policy(learner)
        print(f"learns   mean length {before:.1f} to {after:.1f} characters in two steps that reward short answers")
    except sampler.PolicyError as error:
        fail(error, code=1)
    except (ValueError, ModelError) as error:
        fail(error)


@app.command()
def contamination(
    model: Annotated[str, typer.Option(help="As `model` of a notebook.")],
    data: Annotated[str, typer.Option(help="A file of rows, a hub id or a URL; without it the task's own.")] = "",
    task: Annotated[str, typer.Option(help="Whose rows they are: math500, aime24, gsm8k, ...")] = "math500",
) -> None:
    """Has a model seen these questions? It completes each from its first 60 %, and the same with other numbers.

    Exit code 0 whatever is found: the sentence at the end says whether the two can be told apart.
    """
    from cat_lib.measuring.contamination import probe, require
    from cat_lib.measuring.words import findings

    try:
        loaded = load_task(task, data or None)
        require(loaded, loaded.rows)  # before the model is loaded
        shares, beyond = probe(load_model(model), loaded, loaded.rows)
    except (ValueError, ModelError) as error:
        fail(error)
    table = Table("measure", "text", "share", "95 % interval", "n")
    for r in shares.itertuples():
        table.add_row(r.measure, r.method, f"{r.value:.3f}", f"{r.low:.3f} to {r.high:.3f}", str(r.n))
    Console().print(table)
    print(findings(beyond, "the same questions with their numbers redrawn", "{measure}"))


@app.command()
def answers(
    file: Annotated[str, typer.Argument(help="A .jsonl or .json file of rows with gold and answer.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list of objects instead of a table.")] = False,
) -> None:
    r"""Show the canonical form of each gold and answer, and whether they are equal, as rewards and evaluation see it.

    A row has `gold` and `answer`; other keys pass through to --json. Both are the text of an answer, as it stands
    inside a box: a \boxed{...} around the whole text and all dollar signs are taken off, and a box inside other text
    is not looked for. Equal is null, and the form too, where an answer can't be read within its limits.
    Exit code 2 if a row can't be used, with one line for each that says why.
    """
    bad: Bad = []
    try:
        rows = [row for _, row in usable(file_rows(local_file(file)), _pair, bad)]
        if not rows and not bad:
            raise DataError(f"{file}: no rows")
    except DataError as error:
        bad = [error]
    if bad:
        more = [f"{file}: and {len(bad) - NAMED} more rows that can't be used"] if len(bad) > NAMED else []
        needed = 'a row is an object like {"gold": "1/2", "answer": "0.5"}'
        fail(*(f"{wrong}; {needed}" for wrong in bad[:NAMED]), *more)
    forms = read([str(row[key]) for row in rows for key in ("gold", "answer")])
    written, table = [], Table("gold", "answer", "gold's form", "answer's form", "equal")
    for row, *both in zip(rows, forms[::2], forms[1::2], strict=True):
        pair, equal = {"gold": row["gold"], "answer": row["answer"]}, same(*both)
        known = [None if isinstance(form, Lost) else form for form in both]
        written.append(pair | dict(zip(_WRITTEN, (*known, equal), strict=True)) | row)
        shown = [f"lost: {form.why}" if isinstance(form, Lost) else form or "none" for form in both]
        shown.append({True: "equal", False: "not equal", None: "lost"}[equal])
        table.add_row(*(Text(visible(cell)) for cell in (*pair.values(), *shown)))
    if as_json:
        print(json.dumps(written, ensure_ascii=False, indent=1))
    else:
        Console().print(table)


def _pair(row: Given) -> dict[str, Any]:
    """The row, if its gold and answer are text or numbers. Raises DataError naming row and key."""
    found: dict[str, Any] = row.value
    for key in ("gold", "answer"):
        if key not in found:
            raise DataError(f"{row.where}: no {key} (the row has {', '.join(found)[:200] or 'nothing'})")
        if type(found[key]) not in (str, int, float):
            raise row[key].refused(f"is a {type(found[key]).__name__}, where text or a number is needed")
    for key in _WRITTEN:
        if key in found:
            raise DataError(f"{row.where}: the key {key} is what this command writes; rename it")
    return found


def fail(*lines: object, code: int = 2) -> NoReturn:
    """End the command with its reasons."""
    print(*(masked(visible(line)) for line in lines), sep="\n", file=sys.stderr)
    raise typer.Exit(code) from None
