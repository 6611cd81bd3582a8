"""`python -m cat_lib check judge` against servers that behave and that do not."""

from __future__ import annotations

import pytest
from misbehaving import SECRET, good, misbehaving

from cat_lib.models.endpoint import KEY
from small import cat_lib

pytestmark = pytest.mark.fault


def check(model, tmp_path, *words):
    return cat_lib(tmp_path, "check", "judge", f"endpoint:m@{model.url}", *words)


def test_a_judge_that_works_is_shown_with_its_cost(tmp_path, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    with misbehaving(
        (200, good(f"<think>{SECRET}</think><reason>It \x1b[31mdoes.</reason><verdict>yes</verdict>"))
    ) as (
        model,
        server,
    ):
        code, out = check(model, tmp_path, "--price", "2", "10")
    assert code == 0, out
    assert server.seen[0]["key"] == f"Bearer {SECRET}"
    assert len(server.seen) == 1
    assert "model='m', max_tokens=200, seed=0, temperature=0.0; prompt 'You check" in out
    assert "<verdict>yes</verdict>" in out
    assert "refuses  no field" in out
    assert "5 + 7 tokens, $0.000080" in out
    assert "read     yes" in out
    assert SECRET[:8] not in out
    assert "\x1b" not in out


def test_what_a_server_refuses_is_listed(tmp_path):
    def act(request):
        for name in ("seed", "max_tokens"):
            if name in request:
                return 400, {"error": {"message": f"Unsupported parameter: {name}"}}
        return 200, good("<reason>No.</reason><verdict>no</verdict>")

    with misbehaving(act) as (model, server):
        code, out = check(model, tmp_path)
    assert code == 0, out
    assert len(server.seen) == out.count("sent     ") == 3
    assert "refuses  seed (left out), max_tokens (sent as max_completion_tokens)" in out
    assert "no, where yes is right" in out
    assert "Warning" not in out


@pytest.mark.parametrize(
    ("act", "cause"),
    [
        ((200, good("I can't say.")), 'no verdict: malformed reply: "I can\'t say."'),
        ((200, good("<reason>It", "length")), "no verdict: the reply was cut off"),
        ((200, good(None, "content_filter")), "no verdict: content filter"),
        (401, "no verdict: key: "),
        (503, "no verdict: busy: "),
        ((404, {"error": {"message": "model m does not exist"}}), "model m does not exist"),
        ("a page", "does the URL end in /v1?"),
    ],
)
def test_no_verdict_is_its_cause_on_one_line(act, cause, tmp_path):
    with misbehaving(act) as (model, server):
        code, out = check(model, tmp_path)
    assert code == 2
    assert cause in out.splitlines()[-1] or cause in out.splitlines()[-2]
    assert "Traceback" not in out
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["anchor", "endpoint:m@http://u:pa55word@127.0.0.1/v1"])
def test_what_is_no_endpoint_is_refused(name, tmp_path):
    code, out = cat_lib(tmp_path, "check", "judge", name)
    assert code == 2
    assert "endpoint:MODEL@http://HOST:PORT/v1" in out
    assert "pa55word" not in out
