"""What the pages promise is there: links, files, notebooks, commands and functions; and the worked example runs."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from typer.exceptions import TyperException

from cat_lib.__main__ import app
from cat_lib.learning import grpo
from cat_lib.method.estimators import voting
from cat_lib.schema import Completion, Group

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "cat_lib"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests/README.md", *sorted((ROOT / "docs").glob("*.md"))]
FILES = re.compile(r"[\w.*-]+(?:/[\w.*-]+)*\.(?:py|ipynb|yaml|yml|txt|csv|png|toml|cff|md|jsonl)")
WRITTEN = re.compile(rf"{FILES.pattern}|.*\.(?:json|parquet|html)")  # files, those of runs too: no names in modules
ELSEWHERE = {"transformers.generate"}  # names of other libraries
INVENTED = {"FILE.jsonl", "teachers.yaml", "executed.ipynb", "cat_lib/method/estimators/abstaining.py"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_names_exists(page: Path):
    assert faults(page.read_text(), page.parent) == []


@pytest.mark.parametrize(
    ("promise", "fault"),
    [
        ("[page](docs/nowhere.md)", "docs/nowhere.md"),
        ("![figure](results/published/none.png)", "results/published/none.png"),
        ("[part](docs/limits.md#none)", "docs/limits.md#none"),
        ("`cat_lib/nowhere.py`", "cat_lib/nowhere.py"),
        ("`nowhere.py`", "nowhere.py"),
        ("`18_nothing` and `19`", "18_nothing, 19"),
        ("`make nothing`", "make nothing"),
        ("```\npython -m cat_lib fly\n```", "fly"),
        ("```\npython -m cat_lib suite notebooks/suites/smoke.yaml --fly\n```", "--fly"),
        ("```\npython -m cat_lib check fly\n```", "fly"),
        ("```\npython -m cat_lib run notebooks/00_quickstart.ipynb \\\n    -p sead=1\n```", "sead"),
        ("`-p sead=1`", "sead"),
        ("`stats.nothing`", "stats.nothing"),
        ("`gone.nothing`", "gone.nothing"),
        ("`Trained.nothing`", "Trained.nothing"),
        ("`cat_lib.tasks.answers.nothing`", "cat_lib.tasks.answers.nothing"),
    ],
)
def test_a_page_that_promises_too_much_is_found(promise, fault):
    found = faults(promise, ROOT)
    assert all(any(part in one for one in found) for part in fault.split(", ")), found


def test_a_newcomer_finds_every_page_from_a_short_readme():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / link).resolve() for link in _links(text) if "://" not in link}
    assert set(PAGES) - linked == {ROOT / "README.md"}
    assert {ROOT / "CITATION.cff", ROOT / "LICENSE", *(ROOT / "notebooks").glob("*.ipynb")} <= linked


def test_the_house_lists_every_file():
    tree = (ROOT / "docs/house.md").read_text().split("```")[1]
    stack, listed = list[str](), set[str]()
    for line in tree.strip("\n").splitlines():
        depth, name = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        stack[depth:] = [name.rstrip("/")]
        if name.endswith(".py"):
            listed.add("/".join(stack))
    assert listed == {str(file.relative_to(ROOT)) for file in LIBRARY.rglob("*.py")}


def test_the_citation_is_valid():
    """CFF 1.2.0: the keys that its schema requires, of the software and of each reference."""
    cff = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cff)
    assert (cff["cff-version"], cff["title"], cff["license"]) == ("1.2.0", "cat_lib", "Apache-2.0")
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{cff["version"]}"' in project
    assert f'license = "{cff["license"]}"' in project
    papers = {reference["url"].rsplit("/", 1)[1] for reference in cff["references"]}
    methods = {"2509.14234", "2504.16084", "2603.19880", "2511.19399", "2604.16804", "2511.09907"}
    assert papers == methods | {"2505.08775"}
    for entry in (cff, *cff["references"]):
        assert entry["authors"]
        assert all(set(a) in ({"name"}, {"given-names", "family-names"}) for a in entry["authors"])
    for reference in cff["references"]:
        assert {"type", "title", "authors"} <= set(reference)
        assert all(i["type"] == "other" and i["value"] for i in reference["identifiers"])


def test_the_worked_example_runs(monkeypatch):
    """All python blocks of the page in order, as one file; the line that trains has to fit `train`'s signature."""
    fits = inspect.signature(grpo.train).bind
    monkeypatch.setattr(grpo, "train", fits)
    names: dict[str, object] = dict.fromkeys(("policy", "task", "examples", "settings", "run"))
    blocks = [t.content for t in _tokens((ROOT / "docs/adding_a_method.md").read_text()) if t.info == "python"]
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "adding_a_method.md", "exec"), names)  # our own page

    def group(*answers):
        return Group("q", "?", tuple(Completion(str(a), (), "stop") for a in answers), answers)

    abstaining, answered, trained = names["abstaining"], names["answered"], names["trained"]
    assert trained.arguments["estimator"] is names["estimators"]["abstaining"]
    groups = [group("1", "2", "2"), group("1", "2"), group(None, None), group("3", None, None)]
    assert [r and (r.answer, r.estimator) for r in abstaining(0.5)(groups)] == [("2", "abstaining"), None, None, None]
    assert [r and r.answer for r in abstaining(0)(groups)] == ["2", "1", None, "3"]  # TTRL's own vote
    assert answered(groups, voting.none(groups)) == [[1, 1, 1], [1, 1], [0, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match=r"share=1: allowed is 0 to below 1"):
        abstaining(1)


def faults(text: str, folder: Path) -> list[str]:
    """What a page names and nothing has; `folder` is where its relative links start."""
    code = list(_code(text))
    found = [f"link {link}" for link in _links(text) if "://" not in link and not _target(link, folder)]
    for line in code:
        found += [f"file {name}" for name in FILES.findall(line) if name not in INVENTED and not _file(name, folder)]
        found += [f"notebook {name}" for name in re.findall(r"\b\d\d_[a-z_]+\b", line) if name not in _parameters()]
        found += [f"make {name}" for name in re.findall(r"^make ([a-z][a-z-]*)", line) if name not in _targets()]
        if re.fullmatch(r"[01]\d", line) and not any(name.startswith(line) for name in _parameters()):
            found.append(f"notebook {line}")
        name = re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", line) and not WRITTEN.fullmatch(line)
        if name and line not in ELSEWHERE and not _defined(line):
            found.append(f"name {line}")
        found += _command(line)
    return found


def _tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or ()


def _links(text: str) -> list[str]:
    wanted = {"link_open": "href", "image": "src"}
    return [str(token.attrs[wanted[token.type]]) for token in _tokens(text) if token.type in wanted]


def _code(text: str) -> Iterator[str]:
    """Spans of code, and the lines of blocks: continued ones whole, without their comments."""
    for token in _tokens(text):
        if token.type == "code_inline":
            yield token.content
        elif token.type == "fence" and token.info != "python":
            for line in token.content.replace("\\\n", " ").splitlines():
                yield re.sub(r"\s+# .*", "", line)


def _target(link: str, folder: Path) -> bool:
    name, _, anchor = link.partition("#")
    file = folder / name
    if not file.exists() or not anchor:
        return file.exists()
    heads = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
    return anchor in [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]


def _file(name: str, folder: Path) -> bool:
    """From the root, the library or the page; a bare name is looked for in all folders of code."""
    inside = [] if "/" in name else [ROOT / "tests", ROOT / "benchmarks", LIBRARY, ROOT / "notebooks"]
    starts = (ROOT, LIBRARY, folder)
    return any(any(part.glob(name)) for part in starts) or any(any(part.rglob(name)) for part in inside)


def _defined(dotted: str) -> bool:
    """`module.name`, `Class.name` or `cat_lib.room.module.name`, of the library alone."""
    *rooms, head, name = dotted.split(".")
    if (LIBRARY.parent / dotted.replace(".", "/")).with_suffix(".py").exists():
        return True
    if rooms:
        files = [LIBRARY.parent.joinpath(*rooms, head).with_suffix(".py")]
    elif head[0].isupper():
        files = [f for f in LIBRARY.rglob("*.py") if re.search(rf"^class {head}\b", f.read_text(), re.MULTILINE)]
    else:
        files = list(LIBRARY.rglob(f"{head}.py"))
    pattern = rf"^\s*(?:(?:async )?def|class) {name}\b|^\s*{name}\b.*[:=]"
    return any(f.exists() and re.search(pattern, f.read_text(), re.MULTILINE) for f in files)


@cache
def _targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@cache
def _parameters() -> dict[str, set[str]]:
    """The names in the parameter cell of each notebook."""
    found = {}
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [c for c in json.loads(file.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
        values = [node for node in ast.parse("".join(cells[0]["source"])).body if isinstance(node, ast.AnnAssign)]
        found[file.stem] = {ast.unparse(node.target) for node in values}
    return found


def _command(line: str) -> list[str]:
    """What is wrong with a call of the library's command line, or with `-p name=value` alone."""
    words = shlex.split(line) if "-p " in line or "-m cat_lib" in line else []
    notebooks = [Path(word).stem for word in words if word.startswith("notebooks/") and word.endswith(".ipynb")]
    known = set().union(*(_parameters().get(n, set()) for n in notebooks or _parameters()))
    given = [words[i + 1].partition("=")[0] for i, word in enumerate(words[:-1]) if word == "-p"]
    found = [f"parameter {name} in {line}" for name in given if name not in known | {"name"}]
    if "cat_lib" in words and words[words.index("cat_lib") - 1] == "-m":
        command, rest = typer.main.get_command(app), words[words.index("cat_lib") + 1 :]
        while hasattr(command, "commands") and rest:
            name, *rest = rest
            if name not in command.commands:
                return [*found, f"command {name} in {line}"]
            command = command.commands[name]
        try:
            command.make_context("cat_lib", rest)  # reads the words, calls nothing
        except TyperException as error:
            found.append(f"{error} in {line}")
    return found
