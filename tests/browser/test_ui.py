"""What a person sees: a small suite in MLflow's pages and in the report, in Debian's Chromium, with screenshots kept.

Screenshots go to results/screenshots, or where CAT_LIB_SCREENSHOTS says; docs/suites_and_clusters.md shows two of them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from cat_lib.runs import places
from cat_lib.runs import store as store_
from cat_lib.runs.mirror import import_run
from small import STEPS, cat_lib, free_port, write_notebook, write_training

pytestmark = pytest.mark.browser
SCREENSHOTS = Path(os.environ.get("CAT_LIB_SCREENSHOTS", Path(__file__).parents[2] / "results" / "screenshots"))
SECONDS = 30_000  # milliseconds that a page may take
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"


@pytest.fixture
def page():
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("no Chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        quiet = ["--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"]
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu", "--disable-component-update", *quiet]
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(SECONDS)
        yield page
        browser.close()


@pytest.fixture
def ui(store):
    """The URL of `python -m cat_lib ui` over the test's store."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
         "--backend-store-uri", places.tracking_uri()],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.3)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 9)


def keep(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_a_suites_runs_their_comparison_a_notebook_and_the_report_are_seen(store, ui, page):
    rollouts = (
        "import pandas as pd\n"
        f"table = pd.DataFrame({{'question': ['q'], 'text': [{HOSTILE!r}], 'reference': ['r'], 'reward': [1.0]}})\n"
        "run.table('rollouts', table)\n"
        "accuracy = x + 0.03 * seed * x\n"
        "run.metrics({'accuracy': accuracy, 'heldout_questions': 48, 'policy_tokens': 1000 * x})"
    )
    write_notebook(store / "small.ipynb", STEPS, rollouts)
    (store / "s.yaml").write_text(
        "suite: small-suite\nentries: [{notebook: small.ipynb, grid: {x: [0.5, 0.6]}, seeds: [0, 1, 2]}]"
    )
    code, out = cat_lib(store, "suite", store / "s.yaml", "--jobs", "2")
    assert code == 0, out
    words = ["--run-id", "report", "-p", 'experiments=["suite/small-suite"]', "-p", "metric=accuracy"]
    code, out = cat_lib(store, "run", Path(__file__).parents[2] / "notebooks" / "10_compare.ipynb", *words)
    assert code == 0, out

    client = store_.connect()
    experiment = client.get_experiment_by_name("suite/small-suite").experiment_id
    runs = {r.info.run_name: r.info.run_id for r in client.search_runs([experiment])}
    names = [f"small x={x} seed={s}" for x in (0.5, 0.6) for s in (0, 1, 2)]
    assert set(names) < set(runs)

    page.goto(f"{ui}/#/experiments/{experiment}/runs")
    parent = page.get_by_role("gridcell").filter(has_text="small-suite")
    parent.first.wait_for()
    page.get_by_label("Close").first.click()  # a panel that hides half of the table
    parent.get_by_role("button").first.click()  # opens the parent
    for name in names:
        page.get_by_text(name, exact=True).first.wait_for()
    keep(page, "runs")

    chosen = "%22,%22".join(runs[n] for n in names[::3])
    page.goto(f"{ui}/#/compare-runs?runs=[%22{chosen}%22]&experiments=[%22{experiment}%22]")
    page.get_by_text(re.compile("Comparing 2 Runs")).first.wait_for()
    page.get_by_text("2_signal/value", exact=True).first.wait_for()
    keep(page, "comparison")

    page.goto(f"{ui}/#/experiments/{experiment}/runs/{runs[names[0]]}/artifacts/executed.ipynb")
    page.get_by_text("run.finish()").first.wait_for()
    keep(page, "notebook")

    compared = client.get_experiment_by_name("10_compare").experiment_id
    report_id = client.search_runs([compared])[0].info.run_id
    page.goto(f"{ui}/#/experiments/{compared}/runs/{report_id}/artifacts/report.html")
    page.locator("iframe").first.content_frame.get_by_role("heading", name="Paired by seed").wait_for()
    keep(page, "report_in_mlflow")

    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((store / "runs" / "10_compare" / "report" / "report.html").as_uri())
    page.get_by_text("onerror").first.wait_for()  # the hostile text is there, as text
    assert page.title() != "hacked"
    assert [u for u in asked if u.startswith(("http:", "https:", "ws:"))] == []
    page.screenshot(path=SCREENSHOTS / "report.png", full_page=True)
    columns = page.get_by_label("columns that hold this | or this")  # of rollouts side by side
    bar = page.locator(".filter").filter(has=columns).last
    columns.last.fill("x=0.5")
    bar.get_by_text("1 of 2 columns").wait_for()
    bar.get_by_label("rows that hold this | or this").fill("no text of these")
    bar.get_by_text(re.compile(r"^0 of \d+ rows, 1 of 2 columns")).wait_for()
    keep(page, "report_filtered")


def test_a_runs_page_tells_its_story_and_two_runs_tables_are_compared(store, ui, page):
    folders = [write_training(store / "runs" / "00_quickstart" / f"20261128-12000{seed}-abcdef", HOSTILE, seed=seed)
               for seed in (0, 1)]  # fmt: skip
    ids = [import_run(folder) for folder in folders]
    experiment = store_.connect().get_experiment_by_name("00_quickstart").experiment_id
    page.goto(f"{ui}/#/experiments/{experiment}/runs?workflowType=machine_learning")  # as `make ui` prints it
    page.get_by_text("synthesis · smoke · steps=3 · seed 1").first.click()
    page.get_by_text("Not shown by seed 1.").wait_for()
    page.get_by_text("Show more").click()
    picture = page.locator("img[src*=get-artifact]").first
    picture.scroll_into_view_if_needed()
    picture.evaluate("image => image.decode()")  # once it is there
    assert page.get_by_text("00_quickstart.ipynb").count()
    keep(page, "run")

    here = f"{ui}/#/experiments/{experiment}/runs/{ids[1]}"
    page.goto(f"{here}/model-metrics?workflowType=machine_learning")
    headings = [page.get_by_text(name) for name in ("1_results", "2_signal", "3_cost", "trainer")]
    for heading in headings:
        heading.first.wait_for()
    tops = [heading.first.bounding_box()["y"] for heading in headings]
    assert tops == sorted(tops)
    keep(page, "sections")

    page.goto(f"{here}/artifacts/tables/rollouts.json?workflowType=machine_learning")
    page.get_by_role("cell").or_(page.get_by_role("gridcell")).filter(has_text="onerror").first.wait_for()
    keep(page, "rollouts")
    page.get_by_text("executed.html").first.click()
    inside = page.locator("iframe").first.content_frame
    inside.locator("#verdict").get_by_text("Not shown by seed 1.").wait_for()
    inside.locator("math").first.wait_for()
    keep(page, "executed")
    page.goto(f"{here}/traces?workflowType=machine_learning")
    page.get_by_text("q0?").first.click()
    page.get_by_text("verdicts on rollout 1").first.wait_for()
    keep(page, "trace")
    assert page.title() != "hacked"

    page.goto(f"{ui}/#/experiments/{experiment}/runs?workflowType=machine_learning&compareRunsMode=ARTIFACT")
    for seed in (0, 1):
        page.get_by_text(f"synthesis · smoke · steps=3 · seed {seed}").nth(1).wait_for()  # in the list, over a column
    keep(page, "tables_compared")

    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folders[0] / "executed.html").as_uri())
    page.get_by_text("Not shown by seed 0.").first.wait_for()
    assert page.locator("math mo").first.bounding_box()["height"] > 0
    assert page.title() != "hacked"
    assert [u for u in asked if not u.startswith(("file:", "data:"))] == []
    page.screenshot(path=SCREENSHOTS / "executed_alone.png", full_page=True)
