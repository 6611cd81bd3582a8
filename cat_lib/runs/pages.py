"""What people look at: a run's tables for MLflow's pages, its executed notebook as one page, its story in words.

Text that a model wrote is cut and shown as text: cells of tables and outputs of a notebook hold no markup, and the page
(page.html) runs no script and loads nothing: its policy forbids both. Prose and equations are the notebook's own.
Left out: nbconvert's page, which asks two servers for its scripts, shows equations as dollars and takes 3 s to make.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cat_lib.runs import places
from cat_lib.shown import masked, visible

if TYPE_CHECKING:
    import pandas as pd

PAGE, NOTEBOOK = "executed.html", "executed.ipynb"
ROWS, LONGEST = 400, 4000  # of a table between its first and last step; characters of a text
_MATHS = re.compile(r"(`+).+?\1|\$\$(.+?)\$\$|\$([^$\n]+)\$", re.DOTALL)  # not in code
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_KEPT = {"table", "thead", "tbody", "tr", "th", "td", "div", "p"}  # elements of a shown data frame; others are text
_STYLE, _BETWEEN = re.compile(r"<style.*?</style>", re.DOTALL), re.compile("[^<>]+")


def cut(text: object) -> str:
    """A text as pages show it: its first characters, with the unseen ones written out."""
    more = len(str(text)) - LONGEST
    return visible(str(text)[:LONGEST]) + (f" [... {more} more characters]" if more > 0 else "")


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its texts cut."""
    return table.rename(columns=str).map(lambda value: cut(value) if isinstance(value, str) else value)


def sample(table: pd.DataFrame) -> pd.DataFrame:
    """A table's first and last `step` whole, and between them, or without steps, at most ROWS rows spread evenly."""
    ends = table["step"].isin([table["step"].min(), table["step"].max()]) if "step" in table else table.index < 0
    between = table.index[~ends]
    return table[ends | table.index.isin(between[:: -(-len(between) // ROWS) or 1])]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A sample of a table, as MLflow's pages read one: JSON of "columns" and "data"."""
    path.parent.mkdir(exist_ok=True)
    shown(sample(table.reset_index(drop=True))).to_json(path, orient="split", index=False, default_handler=cut)


def story(cells: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Question, verdict or what ended the run, name and caption of the figure of the cell tagged `result`; or ""."""
    texts = ["".join(cell["source"]) for cell in cells]
    prose = [i for i, cell in enumerate(cells) if cell["cell_type"] == "markdown"]
    parts = (part for i in prose for part in texts[i].split("\n\n"))
    question = next((part for part in parts if part.startswith("**The question.**")), "")
    if (status := config["status"]) != "FINISHED":
        error = re.sub(r"([^\w\s])", r"\\\1", cut(" ".join(str(config.get("error", "")).split())))
        return question, "" if status == "RUNNING" else f"**{status}.** {error}", "", ""
    last = next((i for i in prose if texts[i].startswith("## Verdict")), len(cells))
    said = [output.get("data", {}).get("text/markdown") for cell in cells[last:] for output in cell.get("outputs", ())]
    tagged = next((i for i, cell in enumerate(cells) if "result" in cell["metadata"].get("tags", ())), 0)
    figure = re.search(r"run\.figure\(\s*\"(\w+)\"", texts[tagged]) if tagged else None
    above = next((texts[i] for i in reversed(prose) if i < tagged), "")
    caption = "\n\n".join(part for part in above.split("\n\n") if not part.startswith("#"))
    return question, "\n\n".join("".join(text) for text in said if text), figure[1] if figure else "", caption


def description(folder: Path, config: Mapping[str, Any], run_id: str = "") -> str:
    """A run in Markdown: its question, and once it has ended verdict, caption and figure, or its error."""
    path, text = folder / NOTEBOOK, ""
    path = path if path.exists() else places.NOTEBOOKS / f"{config['notebook']}.ipynb"  # by hand none is executed
    with suppress(OSError, ValueError, KeyError, TypeError):
        question, verdict, figure, caption = story(json.loads(path.read_text("utf-8"))["cells"], config)
        text = "\n\n".join(filter(None, [question, verdict, caption]))
        text = re.sub(r"\$([^$\n]+)\$", r"\1", text).replace("<", "&lt;")  # it knows no equations; nothing is HTML
        if run_id and (folder / "figures" / f"{figure}.png").exists():
            address = f"get-artifact?path=figures%2F{figure}.png&run_uuid={run_id}"
            text += f'\n\n<img src="{address}" alt="{figure}" width="640">'
    return text


def write_page(folder: Path, config: Mapping[str, Any]) -> None:
    """executed.html from executed.ipynb, where there is one. A failure is said in a line: no run ends by it."""
    try:
        if (folder / NOTEBOOK).exists():
            partial = folder / f"{PAGE}.partial"
            partial.write_text(page(json.loads((folder / NOTEBOOK).read_text("utf-8"))["cells"], config), "utf-8")
            partial.replace(folder / PAGE)
    except Exception as error:  # whatever a notebook holds: the run itself is whole
        print(f"no {PAGE} in {folder}: {masked(f'{type(error).__name__}: {error}')[:300]}", flush=True)


def page(cells: Sequence[Mapping[str, Any]], config: Mapping[str, Any]) -> str:
    """An executed notebook as one HTML file that opens on its verdict, or on what ended it. Code is folded."""
    from bleach import clean
    from jinja2 import Environment, FileSystemLoader
    from latex2mathml.converter import convert
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    markdown, made = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image"), list[str]()

    def keep(found: re.Match[str]) -> str:
        if found[1]:
            return found[0]
        tex = (found[2] or found[3]).replace("<", r"\lt ").replace(">", r"\gt ")
        made.append(f"<code>{html.escape(found[0])}</code>")
        with suppress(Exception):  # it raises kinds of its own
            made[-1] = convert(tex, display="block" if found[2] else "inline")
        return f"\ue000{len(made) - 1}\ue001"

    def prose(text: Sequence[str]) -> Markup:
        rendered = markdown.render(_MATHS.sub(keep, "".join(text).replace("\ue000", "")))
        return Markup(re.sub("\ue000(\\d+)\ue001", lambda found: made[int(found[1])], rendered))

    def frame(text: Sequence[str]) -> Markup:
        text = visible(_STYLE.sub("", "".join(text)))
        short = _BETWEEN.sub(lambda part: cut(part[0]) if len(part[0]) > LONGEST else part[0], text)
        return Markup(clean(short, _KEPT, ["colspan", "rowspan"]))

    make = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    make.filters |= {"prose": prose, "frame": frame, "said": lambda text: Markup(markdown.render(cut("".join(text))))}
    make.filters |= {"cut": lambda text: "\n".join(map(cut, _ANSI.sub("", "".join(text)).split("\n")))}
    lead, name = "\n\n".join(story(cells, config)[:2]), f"{config.get('notebook')} {config.get('run')}"
    return make.get_template("page.html").render(cells=cells, lead=lead, name=name)
