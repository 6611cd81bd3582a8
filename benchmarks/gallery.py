"""Writes results/published/index.html: one picture for each executed notebook there (executed.html).

    python benchmarks/gallery.py

The picture is the figure of the notebook's cell tagged `result`. The page is one of links: it runs no script.
"""

from __future__ import annotations

import html
import json
import re

from cat_lib.runs.pages import story
from cat_lib.runs.places import NOTEBOOKS, ROOT

PUBLISHED = ROOT / "results/published"
STYLE = """body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(20rem, 1fr)); gap: 1.5rem; }
a { color: inherit; text-decoration: none; border: 1px solid #ddd; padding: .8rem; } img { width: 100%; }
h2 { font-size: 1.15rem; margin: 0 0 .4rem; } p { margin: 0 0 .8rem; }"""


def card(name: str) -> str:
    """A link to one executed notebook: its title, question and figure."""
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text("utf-8"))["cells"]
    title = "".join(cells[0]["source"]).splitlines()[0].removeprefix("# ")
    question, _, figure, _ = story(cells, {"status": "FINISHED"})
    shown = f'<img src="{name}/{figure}.png" alt="{figure}">' if (PUBLISHED / name / f"{figure}.png").exists() else ""
    bare = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", question)  # of a link its words
    words = html.escape(re.sub(r"\*\*(The question\. ?)?|[*$`\\]", "", bare))
    return f'<a href="{name}/executed.html"><h2>{name[:2]}. {html.escape(title)}</h2><p>{words}</p>{shown}</a>'


if __name__ == "__main__":
    names = [page.parent.name for page in sorted(PUBLISHED.glob("*/executed.html"))]
    if not names:
        raise SystemExit(f"no executed.html under {PUBLISHED}: run `make published` first")
    cards = "\n".join(card(name) for name in names if (NOTEBOOKS / f"{name}.ipynb").exists())
    page = (
        f"<!DOCTYPE html><html lang='en'><meta charset='utf-8'><title>cat_lib, executed</title><style>{STYLE}</style>"
    )
    words = "Each notebook as it was executed at smoke size by <code>make published</code>: a 135M model on a CPU."
    (PUBLISHED / "index.html").write_text(
        f"{page}<h1>cat_lib, executed</h1><p>{words}</p><main>{cards}</main></html>\n"
    )
    print(f"{len(names)} executed notebooks: {PUBLISHED / 'index.html'}")
