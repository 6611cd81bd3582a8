"""Word problems of other people's files, as NL4OPT, MAMO, IndustryOR, OptMATH-Bench, OptiBench and NL4LP have them.

Read are JSON Lines as SIRL has them (`en_question`, `en_answer`) and CSV as OptiMind has it (`question`, `answer`). A
row without one number for an answer, as "No Best Solution", can't be used, and is counted with what is skipped. All are
held out. Some labels are known to be wrong: what is known (datasets.yaml) is printed with the file.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from cat_lib.prompts import ask
from cat_lib.schema import Example, Sampling
from cat_lib.tasks.answers import number
from cat_lib.tasks.formulate import FormulateTask
from cat_lib.tasks.rows import DATASETS, Bad, DataError, Given, file_rows, local_file, settle, usable


def load_problems(source: str, skip_bad_rows: bool = False) -> FormulateTask:
    """The task of a file's problems, each asked as a chat; with `skip_bad_rows` of the rows that can be used.

    Raises DataError naming place and key of rows that can't be used, or saying why the file can't be had.
    """
    path, bad = local_file(source), Bad()
    rows = _csv(path) if source.partition("?")[0].lower().endswith(".csv") else file_rows(path)
    examples, skipped = settle(source, usable(rows, _example, bad), bad, skip_bad_rows)
    called = re.sub("[-_]", "", source.lower().rpartition("/")[2])
    about = "; ".join(f"{source}: {note}" for name, note in DATASETS["formulate"].items() if name in called)
    if about:
        print(about, flush=True)
    return FormulateTask((), sampling=Sampling(2_048), given=tuple(examples), skipped=skipped, about=about)


def _csv(path: Path) -> Iterator[Given]:
    try:
        table = csv.DictReader(io.StringIO(path.read_bytes().decode("utf-8-sig"), newline=""), strict=True)
        for number, row in enumerate(table, 1):
            yield Given({key: value for key, value in row.items() if key}, f"{path}, row {number}")
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no CSV in UTF-8: {error}") from None


def _example(row: Given) -> Example:
    """A row's problem and the value of its optimum."""
    keys = DATASETS["formulate_keys"]
    question, answer = (
        next((k for k in keys[kind] if k in row.value), keys[kind][0]) for kind in ("question", "answer")
    )
    asked, given = row[question].text().strip(), row[answer]
    if (found := number(str(given.value).strip())) is None:
        raise given.refused(f"is {given.shown}, where one number is needed: a row without a solution is no use")
    kinds = [str(row[key].value) for key in keys["level"] if row[key].value is not None]
    loose = "~" if re.search("non-?linear|nlp|quadratic", " ".join(kinds).lower()) else ""  # within 2 %
    id, prompt = row.where.rpartition("/")[2], ask("formulate_chat", problem=asked)
    return Example(id, asked, prompt, f"{loose}{float(found):.6f}", "".join(kinds[:1]))
