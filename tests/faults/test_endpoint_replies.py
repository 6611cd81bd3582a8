"""What odd servers answer and refuse: read right, asked again only where that helps, and told in their own words."""

from __future__ import annotations

import datetime
import email.utils
import json
import time
import warnings

import pytest
from misbehaving import SECRET, YES, good, misbehaving

from cat_lib.method.judge import Judge
from cat_lib.models import endpoint, replies
from cat_lib.models.cache import Cache
from cat_lib.models.endpoint import KEY, EndpointError, EndpointModel
from cat_lib.schema import Completion, Sampling

pytestmark = pytest.mark.fault
SHORT = Sampling(8, temperature=0.0)
PAIR = [("Rest and drink.", "Says to rest.")]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(endpoint, "_REFUSED", {})
    monkeypatch.setattr(endpoint, "_UNCOUNTED", set())


def asked(*script, sampling=SHORT, **settings):
    """The answer to one prompt, the requests that it took, and the judge's account."""
    with misbehaving(*script, **settings) as (model, server):
        (answer,) = model.attempt(["Hello"], sampling)
    return answer, server.seen, model.ledger.roles["judge"]


# what an answer looks like


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": YES}],
        [{"type": "text", "text": YES[:10]}, {"type": "text", "text": YES[10:]}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "no?"}]}, {"type": "text", "text": YES}],
        [YES],
        f"<think>At first <verdict>no</verdict></think>{YES}",
        f"the template opened it </think>\n\n{YES}",
    ],
)
def test_an_answer_in_parts_or_after_thinking_is_its_text(content):
    answer, seen, cost = asked((200, good(content)))
    assert answer == Completion(YES, (), "stop")
    assert (len(seen), cost.completion_tokens) == (1, 7)  # what was thought is in the account


def test_thinking_in_a_field_of_its_own_stays_out():
    message = {"role": "assistant", "content": YES, "reasoning_content": "no?", "reasoning": "no?"}
    assert asked((200, good(message=message)))[0].text == YES


def test_an_answer_that_ended_while_thinking_is_cut_and_not_asked_again_by_the_engine():
    message = {"role": "assistant", "content": None, "reasoning_content": "so the"}
    answer, seen, _ = asked((200, good(message=message, finish_reason="length")))
    assert (answer, len(seen)) == (Completion("", (), "length"), 1)
    assert asked((200, good("<think>so the", "length")))[0] == Completion("", (), "length")


@pytest.mark.parametrize(
    ("finish", "tokens", "expected"),
    [
        (None, 7, "stop"),
        ("", 7, "stop"),
        (None, 8, "length"),  # all that were allowed
        ("unknown", 8, "length"),
        ("stop_sequence", 8, "stop"),
        ("STOP", 7, "stop"),
        ("MAX_TOKENS", 3, "length"),
        ("eos_token", 7, "stop"),
        ("tool_calls", 7, "stop"),
        (0, 7, "stop"),
    ],
)
def test_an_unusual_ending_costs_no_answer(finish, tokens, expected):
    usage = {"prompt_tokens": 5, "completion_tokens": tokens}
    answer, seen, _ = asked((200, good(finish=finish, usage=usage)))
    assert (answer.text, answer.finish, len(seen)) == (YES, expected, 1)


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 5}, (5, 0)),
        ({"completion_tokens": 7}, (0, 7)),
        ({"prompt_tokens": 5, "total_tokens": 12}, (5, 7)),
        ({"completion_tokens": 7, "total_tokens": 12}, (5, 7)),
        ({"prompt_tokens": "5", "completion_tokens": None}, (0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (0, 0)),
        ({}, (0, 0)),
        ("many", (0, 0)),
    ],
)
def test_a_partial_account_costs_no_answer_and_is_said_once(usage, counted):
    whole = counted == (5, 7)
    billed = misbehaving((200, good(usage=usage)), prices={"m": (1e6, 1e6)})
    with billed as (model, _), warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        answers = [*model.attempt(["a", "b"], SHORT), *model.attempt(["c"], SHORT)]
    assert [a.text for a in answers] == [YES] * 3
    cost = model.ledger.roles["judge"]
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens) == (3, 3 * counted[0], 3 * counted[1])
    assert cost.usd == 3 * sum(counted)
    assert len([w for w in told if "does not count all tokens" in str(w.message)]) == (not whole)


@pytest.mark.parametrize(
    "body",
    [
        "null",
        "[]",
        '"yes"',
        "7",
        "[" * 5000,
        {"choices": "none"},
        {"choices": {"0": 1}},
        {"choices": [None]},
        {"choices": [{"message": "yes"}]},
        good({"text": YES}),
        good([{"type": "image_url", "image_url": "x"}]),
        good([]),
        good(7),
        {"error": {"message": "the model crashed"}},
    ],
)
def test_no_shape_of_a_body_raises(body):
    answer, seen, _ = asked((200, body), attempts=2)
    assert isinstance(answer, EndpointError)
    assert (answer.cause, len(seen)) == ("broken", 2)
    if isinstance(body, dict) and "error" in body:
        assert "the model crashed" in str(answer)


@pytest.mark.parametrize("entry", [[None, "stop"], [[{"text": YES}], "stop"], [YES], YES, 7, None, {"text": 1}])
def test_a_poisoned_entry_of_the_cache_is_asked_anew_and_replaced(entry, tmp_path):
    cache = Cache(tmp_path / "j.db")
    with misbehaving("good") as (model, server):
        judge = Judge(model, "text", cache=cache)
        place = judge._asked(PAIR)[PAIR[0]].keys[0]
        cache.put({place: entry})
        assert judge(PAIR)[0].met is True
        assert judge(PAIR)[0].met is True
        assert len(server.seen) == 1
        with cache._open() as db:
            db.execute("UPDATE answers SET value = '[\"half'")
        assert judge(PAIR)[0].met is True
    assert len(server.seen) == 2


def test_a_reply_without_a_verdict_is_not_kept_so_that_a_server_can_be_mended(tmp_path):
    cache = Cache(tmp_path / "j.db")
    with misbehaving((200, good("no form")), (200, good("none")), "good") as (model, server):
        judge = Judge(model, "text", cache=cache, attempts=2)
        assert judge(PAIR)[0].met is None
        assert judge(PAIR)[0].met is True
    assert len(server.seen) == 3


# content filters


@pytest.mark.parametrize(
    "act",
    [
        (200, good(None, "content_filter")),
        (200, good("It", "content_filter")),
        (200, good(None, "SAFETY")),
        (200, good(message={"role": "assistant", "content": None, "refusal": "I can't help with that."})),
        (400, {"error": {"code": "content_filter", "message": "The response was filtered"}}),
        (400, {"error": {"code": None, "message": "blocked by our content management policy"}}),
        (403, {"error": {"message": "flagged by moderation"}}),
    ],
)
def test_a_refusal_of_a_content_filter_is_asked_once(act, tmp_path):
    with misbehaving(act) as (model, server):
        (verdict,) = Judge(model, "text", cache=Cache(tmp_path / "j.db"))(PAIR)
    assert verdict.met is None
    assert verdict.cause.startswith("content filter")
    assert len(server.seen) == 1


# fields that a server does not take


def refusing(*fields, **words):
    """A server that refuses each of `fields`, in these words."""

    def act(request):
        for name in fields:
            if name in request:
                text = words.get(name, f"Unsupported parameter: '{name}'")
                return 400, text if isinstance(text, dict) else {"error": {"message": text}}
        return 200, good()

    return act


def test_nothing_is_sent_at_its_default():
    _, (sent,), _ = asked("good", sampling=Sampling(8))
    assert set(sent) == {"model", "messages", "max_tokens", "seed", "key"}
    _, (sent,), _ = asked("good", sampling=Sampling(8, 0.0, top_p=0.9, stop=("#",), seed=3))
    assert (sent["temperature"], sent["top_p"], sent["stop"], sent["seed"]) == (0.0, 0.9, ["#"], 3)


BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
RENAME = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."


@pytest.mark.parametrize(
    ("server", "gone", "new"),
    [
        (refusing("top_p", top_p=BOTH), {"top_p"}, set()),
        (refusing("max_tokens", max_tokens=RENAME), {"max_tokens"}, {"max_completion_tokens"}),
        (refusing("seed", seed={"detail": [{"loc": ["body", "seed"], "msg": "extra"}]}), {"seed"}, set()),
        (refusing("stop"), {"stop"}, set()),
        (refusing("temperature", temperature={"error": {"message": "Unsupported value", "param": "temperature"}}),
         {"temperature"}, set()),
        (refusing("seed", "stop", "max_tokens", "temperature", "top_p"),
         {"seed", "stop", "max_tokens", "temperature", "top_p"}, {"max_completion_tokens"}),
    ],
)  # fmt: skip
def test_a_field_that_is_refused_is_left_out_remembered_and_said_once(server, gone, new):
    full = Sampling(8, 0.7, top_p=0.9, stop=("#",))
    with misbehaving(server, concurrency=1) as (model, http):
        with pytest.warns(UserWarning, match=r"refuses .*" + sorted(gone)[0]) as told:
            answers = model.attempt(["a", "b"], full)
        assert len(http.seen) == 1 + len(gone) + 1
        again = EndpointModel(model.model, model.url).attempt(["c"], full)  # the same server in the same process
    assert [a.text for a in [*answers, *again]] == [YES] * 3
    assert len(told) == 1
    last = set(http.seen[-1]) - {"key"}
    assert last == {"model", "messages", "max_tokens", "seed", "temperature", "top_p", "stop"} - gone | new
    assert len(http.seen) == 1 + len(gone) + 2


def test_another_refusal_keeps_the_server_s_words_and_nothing_is_remembered(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    words = (
        f"maximum context length is 16 tokens, reduce max_tokens; your key {SECRET} and {SECRET[:12]}…\n" + "x" * 999
    )
    with misbehaving((400, {"error": {"message": words}})) as (model, server):
        (error,) = model.attempt(["Hello"], SHORT)
        assert model.refuses == {}
    assert error.cause == "refused"
    assert "maximum context length is 16 tokens" in str(error)
    assert SECRET[:8] not in str(error)
    assert len(str(error)) < 500
    assert "\n" not in str(error)
    assert len(server.seen) == 1  # it complains about a value: another name of the field would mend nothing


@pytest.mark.parametrize("body", ["<html>no</html>", "", "[]", {"error": "plain words"}, {"detail": "plain words"}])
def test_a_refusal_in_any_form_is_told(body):
    answer, seen, _ = asked((404, body))
    assert (answer.cause, len(seen)) == ("refused", 1)
    assert "404" in str(answer)
    if isinstance(body, dict):
        assert "plain words" in str(answer)


# keys, proxies, certificates


@pytest.mark.parametrize("key", ["sk-abc\ndef", "“sk-abc”", "sk-abc\x00", "sk abc", "sk-Ключ"])
def test_a_key_that_is_none_is_said_at_once_and_not_shown(key, monkeypatch):
    monkeypatch.setattr(replies.os, "environ", replies.os.environ | {KEY: key})  # a real one can't hold NUL
    answer, seen, _ = asked("good")
    assert (answer.cause, seen) == ("key", [])
    assert "U+" in str(answer)
    assert key not in str(answer)
    assert "abc" not in str(answer)


def test_line_breaks_around_a_key_are_no_part_of_it(monkeypatch):
    monkeypatch.setenv(KEY, f"{SECRET}\n")
    answer, (sent,), _ = asked("good")
    assert (answer.text, sent["key"]) == (YES, f"Bearer {SECRET}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PROXY", "u:pa55word@nowhere"),
        ("ALL_PROXY", "gopher://u:pa55word@nowhere"),
        ("HTTP_PROXY", "socks5://u:pa55word@127.0.0.1:9"),
        ("HTTP_PROXY", "http://u:pa55word@127.0.0.1:port"),
        ("SSL_CERT_FILE", "/nowhere/pa55word.pem"),
    ],
)
def test_a_proxy_or_certificate_that_can_t_be_used_is_named_by_its_variable(name, value, monkeypatch):
    for other in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(other, raising=False)
        monkeypatch.delenv(other.lower(), raising=False)
    monkeypatch.setenv(name, value)
    model = EndpointModel("m", "http://judge.invalid/v1", attempts=1, deadline=10)
    start = time.monotonic()
    answers = model.attempt(["a", "b"], SHORT)
    assert time.monotonic() - start < 9
    assert [a.cause in ("environment", "unreachable") for a in answers] == [True, True]
    assert name in str(answers[0])
    assert "pa55word" not in str(answers[0])


@pytest.mark.parametrize(
    "name",
    [
        "endpoint:m@http://u:pa55word@host/v1",
        "endpoint:m@https://pa55word@host/v1",
        "endpoint:m@http://u:pa55/wo@h/v1",
        "endpoint:m@http://h/v1?api-key=pa55word",
    ],
)
def test_a_url_with_a_password_is_refused_and_not_shown(name):
    with pytest.raises(ValueError, match="no user, password or query") as error:
        endpoint.parse(name)
    assert "pa55" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["endpoint:m@http://", "endpoint:m@http://h:port/v1", "endpoint:m@http://[::1/v1", "endpoint:m@u:pa55@h/v1"]
)
def test_a_url_that_is_none_is_refused(name):
    with pytest.raises(ValueError, match="is no endpoint; write") as error:
        endpoint.parse(name)
    assert "pa55" not in str(error.value)


def test_a_model_name_may_hold_the_sign():
    assert endpoint.parse("endpoint:claude@2026@https://host:8000/v1").model == "claude@2026"


# limits


def test_a_limit_that_outlasts_the_deadline_is_said_at_once_and_asked_of_nobody_else():
    with misbehaving(429, deadline=5.0, concurrency=2) as (model, server):
        server.retry_after = "3600"
        start = time.monotonic()
        answers = model.attempt([str(i) for i in range(20)], SHORT)
        assert time.monotonic() - start < 4
    assert {a.cause for a in answers} == {"busy"}
    assert all("rate limit (429)" in str(a) and "asks to wait 3600 s" in str(a) for a in answers)
    assert len(server.seen) <= 2


@pytest.mark.parametrize("form", ["1.5", "date", "nonsense", "-3", "nan", ""])
def test_every_form_of_a_pause_is_read(form):
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=2)
    with misbehaving(429, "good") as (model, server):
        server.retry_after = email.utils.format_datetime(soon, usegmt=True) if form == "date" else form
        (answer,) = model.attempt(["Hello"], SHORT)
    assert isinstance(answer, Completion)
    assert len(server.seen) == 2


def test_an_account_that_is_empty_is_not_asked_again():
    body = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    answer, seen, _ = asked((429, body))
    assert (answer.cause, len(seen)) == ("refused", 1)
    assert "exceeded your current quota" in str(answer)


def test_what_is_heard_is_what_was_sent_and_came(monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    heard = []
    with misbehaving((200, good(f"{SECRET}")), heard=lambda *told: heard.append(told)) as (model, _):
        model.attempt(["Hello"], SHORT)
    ((fields, body),) = heard
    assert fields["max_tokens"] == 8
    assert json.loads(body)["choices"][0]["message"]["content"].startswith("***")
