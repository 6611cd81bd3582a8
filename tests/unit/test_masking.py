"""Addresses with secrets, and all that shows them."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from cat_lib.__main__ import app
from cat_lib.doctor import checks
from cat_lib.runs import tracking
from cat_lib.runs.store import TrackingError, connect
from cat_lib.shown import masked

SECRETS = ("pa/ss", "p@ss", "p:a@s/s?#x", "secret", "ghp_TOKEN")
SHOWN = {
    "postgresql+pg8000://u:pa/ss@host/db": "postgresql+pg8000://***@host/db",
    "postgresql://u:p@ss@host:5432/db": "postgresql://***@host:5432/db",
    "mysql+pymysql://u:p:a@s/s?#x@host/db": "mysql+pymysql://***@host/db",
    "https://ghp_TOKEN@host/api": "https://***@host/api",
    "https://ghp_TOKEN:x-oauth-basic@host": "https://***@host",
    "http://u:secret@host:5000": "http://***@host:5000",
    "postgresql://host/db?user=u&password=secret": "postgresql://host/db?user=u&password=***",
    "postgresql://host/db?sslpassword=secret&sslmode=require": "postgresql://host/db?sslpassword=***&sslmode=require",
    "http://host/v1?access_token=secret&x=1": "http://host/v1?access_token=***&x=1",
    "cannot connect: host=h password='secret' port=1": "cannot connect: host=h password=*** port=1",
    "https://h/f.jsonl?sv=1&sig=secret": "https://h/f.jsonl?sv=1&sig=***",
    "https://h/v1?subscription-key=secret&api-key=secret": "https://h/v1?subscription-key=***&api-key=***",
    "password = secret x, 'api_key': 'secret'": "password = *** x, 'api_key': ***",
    "Authorization: Bearer secret": "Authorization: Bearer ***",
    "two: http://u:secret@a, https://ghp_TOKEN@b.": "two: http://***@a, https://***@b.",
}
PLAIN = ("sqlite:////home/a@b/mlflow.db", "sqlite:///C:/x/mlflow.db", "http://127.0.0.1:5000", "endpoint:m@http://h/v1",
         "rubric_tokens=600", "max_new_tokens=8: allowed", "pass@8: 0.3")  # fmt: skip


@pytest.mark.parametrize("text", SHOWN)
def test_what_stands_before_a_host_and_secret_options_are_never_shown(text):
    assert masked(text) == SHOWN[text]
    assert masked(masked(text)) == SHOWN[text]


@pytest.mark.parametrize("text", PLAIN)
def test_an_address_without_a_secret_is_shown_as_it_is(text):
    assert masked(text) == text


def test_parts_of_a_secret_that_a_driver_quotes_are_taken_out(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://alice:hunter/two%21@host")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxyuser:proxypass@proxy:1")
    monkeypatch.setenv("CAT_LIB_API_KEY", "sk-abc")
    text = "invalid literal for int() with base 10: 'hunter' two! proxypass alice sk-abc; a hunters' word"
    assert masked(text) == "invalid literal for int() with base 10: '***' *** *** *** ***; a hunters' word"


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql+pg8000://mlflow:pa/ss@127.0.0.1:9/db",
        "postgresql+pg8000://mlflow:p@ss@127.0.0.1:9/db",
        "http://alice:pa/ss@127.0.0.1:9",
        "http://ghp_TOKEN@127.0.0.1:9",
        "http://alice:secret@127.0.0.1:9/?token=secret",
        "postgresql://mlflow@127.0.0.1:9/db?password=secret",
        "nothing://u:secret@host",
    ],
)
def test_nothing_that_shows_the_store_shows_its_secret(monkeypatch, tmp_path, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(TrackingError) as caught:
        connect()
    shown = [str(caught.value), *(f"{c.found} {c.fix}" for c in checks() if c.name == "tracking")]
    if uri.startswith("http"):
        shown.append(CliRunner().invoke(app, ["ui"]).output)
    assert not [(s, text) for s in SECRETS for text in shown if s in text]
    assert all("\n" not in text.strip() for text in shown)
    monkeypatch.setattr("sys.argv", ["cat_lib", "run", "x.ipynb", "-p", f"judge=endpoint:m@{uri}"])
    run = tracking.open_run("x", {}, tmp_path / "run")
    run.end("FAILED", f"cell 1 raised ValueError: no {uri}")
    assert not [s for s in SECRETS if s in (run.dir / "config.json").read_text()]


def test_a_store_that_answers_is_shown_without_its_secret(monkeypatch, store):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}?token=secret")
    (check,) = [c for c in checks() if c.name == "tracking"]
    assert "secret" not in check.found
