"""Search over passages, rubrics made of what it finds, and the rewards of rollouts that search and cite."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cat_lib.measuring.audit import ATTACKS
from cat_lib.method.rewards import grounded
from cat_lib.method.rewards.bank import from_bank, sentences
from cat_lib.method.rewards.proposals import Proposer
from cat_lib.method.rewards.rubric import RubricReward, from_search, physician
from cat_lib.method.rewards.weighted import DR_TULU, Weighted, of_answers
from cat_lib.schema import Completion, Criterion, Example, Group, Rubric, Verdict
from cat_lib.tasks.healthbench import clinic, load_health
from cat_lib.tasks.rows import DataError
from cat_lib.tasks.search import PASSAGES, SNIPPET, Corpus, Passage, SearchError, endpoint, load_search
from cat_lib.tasks.searching import parts


@pytest.fixture(scope="module")
def corpus():
    return load_search()


def group(*texts: str, id: str = "q", question: str = "Is it a stroke?") -> Group:
    return Group(id, question, tuple(Completion(t, (1, 2), "stop") for t in texts), (None,) * len(texts))


def test_the_embedded_corpus_is_short_passages_with_stable_ids():
    rows = [json.loads(line) for line in PASSAGES.read_text().splitlines()]
    assert len(rows) >= 120
    assert len({r["id"] for r in rows}) == len(rows)
    assert all(set(r) == {"id", "text"} and 40 <= len(r["text"]) <= SNIPPET for r in rows)
    assert all(1 <= r["text"].count(". ") + 1 <= 3 and r["text"].endswith(".") for r in rows)


def test_every_conversation_of_clinic_finds_passages(corpus):
    for example in clinic().rows:
        assert len(corpus(example.question[-400:], 3)) == 3


@pytest.mark.parametrize(
    ("query", "id"),
    [
        ("stroke drooping face slurred speech", "stroke-signs"),
        ("autism measles vaccine link", "measles-autism"),
        ("is my mole skin cancer", "mole-warning"),
        ("adrenaline pen thigh", "anaphylaxis-pen"),
        ("honey cough baby", "child-cough-honey"),
    ],
)
def test_a_query_finds_its_passage(corpus, query, id):
    assert id in [p.id for p in corpus(query, 3)]


@pytest.mark.parametrize(
    "query",
    ['"', '""', "stroke AND", "NEAR(", "text:stroke", "id:stroke-signs", "stroke*", "NOT stroke", "^stroke", "(",
     "'; DROP",
     "-stroke", "{text id}: stroke", 'stroke" OR "qq', "\x00stroke", "💊 stroke", "stroke " * 50_000],
)  # fmt: skip
def test_the_syntax_of_a_query_is_data(corpus, query):
    found = corpus(query, 3)
    assert (found[:1] and "stroke" in found[0].text) or "stroke" not in query
    assert len(corpus("stroke", 3)) == 3  # and the table is still there


def test_what_asks_for_nothing_finds_nothing(corpus):
    assert corpus("", 3) == corpus("?!...", 3) == corpus("stroke", 0) == corpus("qqqqzz", 3) == []


def test_hostile_passages_stay_bounded_text():
    for number, (_, attack) in enumerate(ATTACKS):
        found = Corpus([Passage(f"p{number}", f"stroke {attack}")])("stroke", 3)
        assert len(found) == 1
        assert len(found[0].text) <= SNIPPET + 6


def test_a_file_and_a_folder_by_the_same_call(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.txt").write_text("Rest helps\na cold.")
    (tmp_path / "two.txt").write_text("Tea is warm.")
    (tmp_path / "empty.txt").write_text(" ")
    assert load_search(tmp_path)("cold", 3) == [Passage("a/one", "Rest helps a cold.")]
    file = tmp_path / "f.jsonl"
    file.write_text('{"id": "x", "text": "Rest helps a cold."}\n')
    assert load_search(file)("colds", 3) == [Passage("x", "Rest helps a cold.")]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "a corpus without passages"),
        ('{"id": "x", "text": "a"}\n{"id": "x", "text": "b"}\n', "passage id 'x' stands twice"),
        ('{"id": "x"}\n', "text is null or missing, where text is needed"),
        ('{"id": 3, "text": "a"}\n', r"id is a number \(3\), where text is needed"),
        ("no JSON\n", "no JSON"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_refused_in_one_line(tmp_path, rows, message):
    file = tmp_path / "f.jsonl"
    file.write_text(rows)
    with pytest.raises(DataError, match=message) as error:
        load_search(file)
    assert "\n" not in str(error.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="without passages"):
        load_search(tmp_path / "folder")


@pytest.fixture
def served():
    """An endpoint on loopback that answers with what stands in `answer`, or sleeps so many seconds."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            if isinstance(self.server.answer, float):
                time.sleep(self.server.answer)
            body = str(self.server.answer).encode()
            with suppress(BrokenPipeError):  # who asked had gone
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.answer = [], "[]"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_an_endpoint_is_a_search_too(served):
    served.answer = json.dumps([{"id": "a", "text": "x " * 1000}, {"id": "b", "text": "y", "score": 1}])
    search = load_search(f"http://127.0.0.1:{served.server_port}/?q={{query}}&n={{n}}")
    assert [p.id for p in search("a&b=c #d", 1)] == ["a"]
    assert served.asked == ["/?q=a%26b%3Dc%20%23d&n=1"]
    assert len(search("x", 2)[0].text) <= SNIPPET + 6


@pytest.mark.parametrize(
    "answer", ["no JSON", "{}", '{"id": 1}', "[1]", '[{"id": "a"}]', "[" * 100_000, 1.0, "[" + "1," * 900_000]
)
def test_an_endpoint_that_is_slow_or_answers_wrongly_is_one_line(served, answer):
    served.answer = answer
    with pytest.raises(SearchError, match=r"search at http://127.0.0.1:\d+/\?key=\*\*\*.*failed") as error:
        endpoint(f"http://127.0.0.1:{served.server_port}/?key=secret&q={{query}}", deadline=0.3)("x", 1)
    assert "\n" not in str(error.value)
    assert "secret" not in str(error.value)


def test_an_endpoint_that_is_down_and_an_address_without_a_query_are_refused():
    with pytest.raises(SearchError, match="failed"):
        endpoint("http://127.0.0.1:9/{query}")("x", 1)
    with pytest.raises(ValueError, match=r"an http address with .query. in it"):
        load_search("http://127.0.0.1:9/")


# rubrics of what search finds


def test_first_rubrics_are_sentences_of_what_was_found(corpus):
    (proposal,) = from_bank(sentences(corpus, 2), 3)(
        [group("a", question="My face is drooping, is it a stroke?")], [None]
    )
    texts = [c.text for c in proposal.rubric.criteria]
    assert len(texts) == 3
    assert all(t.startswith("Says that ") and t.endswith(".") and not t.endswith("..") for t in texts)
    (none,) = from_bank(sentences(corpus))([group("a", question="zzqq")], [None])
    assert (none.rubric, none.cause) == (None, "search found no passage")


def test_a_rubric_is_written_from_what_was_found_and_kept(corpus, tmp_path):
    class Anchor:
        asked: list = []  # noqa: RUF012

        def generate(self, prompts, n, sampling):
            self.asked += [p[0]["content"] for p in prompts]
            rows = "".join(f"<criterion>Says thing number {w}.</criterion>" for w in "abcde")
            return [[Completion(f"<rubric>{rows}</rubric>", (), "stop")] for _ in prompts]

    rubrics = from_search(Proposer(Anchor()), corpus, tmp_path / "first.jsonl", 2)
    asked = [group("a", question="drooping face, slurred speech: stroke?"), group("a", id="r", question="zzqq")]
    first, none = rubrics(asked, [None, None])
    assert (len(first.rubric.criteria), first.rubric.source, none.rubric) == (5, "reference", None)
    assert "slurred speech can be a stroke" in Anchor.asked[0]
    assert "drooping face, slurred speech: stroke?" not in Anchor.asked[0]
    again = from_search(Proposer(Anchor()), corpus, tmp_path / "first.jsonl", 2)(asked, [None, None])
    assert (again[0].rubric, len(Anchor.asked)) == (first.rubric, 1)


def test_rubric_files_of_other_benchmarks_are_read_in_one_form(tmp_path):
    row = {"prompt_id": "rq-1", "question": "What helps sleep?", "example_tags": ["field:medicine"]}
    row |= {"rubrics": [{"criterion": "Names bedtimes.", "points": 5, "tags": ["type:content"]}]}
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row | {"prompt_id": f"rq-{i}"}) + "\n" for i in range(3)))
    example = load_health(file).rows[0]
    assert (example.question, example.tags) == ("What helps sleep?", ("field:medicine",))
    assert example.prompt == [{"role": "user", "content": "What helps sleep?"}]
    assert example.rubric.criteria == (Criterion("Names bedtimes.", 5.0, ("type:content",)),)
    file.write_text(json.dumps(row | {"question": " "}) + "\n")
    with pytest.raises(DataError, match="question is empty"):
        load_health(file)


# rollouts that search and cite

GOOD = """search: stroke drooping face
[stroke-signs] A sudden drooping face can be a stroke.
answer: This can be a stroke [stroke-signs]. Call emergency services."""
FORGED = "search: zzqq\n[made-up] All is well.\nanswer: All is well [made-up]."


def test_search_and_format_rewards():
    texts = [GOOD, "answer: Rest.", "search: a\nsearch: b\nsearch: c\nsearch: d", "Rest.", "search:\nanswer:", ""]
    (searched,), (formatted,) = (f([group(*texts)], [None]) for f in (grounded.searched, grounded.formatted))
    assert searched == [pytest.approx(1 / 3), 0, 1, 0, 0, 0]
    assert formatted == [1.0, 0.5, 0.2, 0, 0, 0]
    assert parts("search: a\nanswer: Rest.\nsearch: b") == (["a"], "Rest.\nsearch: b")


def cited(says, text, corpus):
    (rewards,) = grounded.Cited(lambda pairs: [says(*pair) for pair in pairs], corpus)([group(text)], [None])
    return rewards[0]


def test_the_citation_reward_by_hand(corpus):
    yes, no, lost = Verdict(True), Verdict(False), Verdict(None, "deadline")
    half = Verdict(False, grade=0.5)
    # two claims: one cited and found in its passage, one that cites nothing and needs no source
    assert cited(lambda r, c: no if c == grounded.NEEDED else yes, GOOD, corpus) == pytest.approx(1.0)
    # the second needs one: recall 1/2, precision 1
    assert cited(lambda r, c: yes, GOOD, corpus) == pytest.approx(0.6 * (2 * 0.5 / 1.5) + 0.4)
    # found in part: recall (1/2 + 1) / 2, precision (1/2 + 1) / 2
    assert cited(lambda r, c: no if c == grounded.NEEDED else half, GOOD, corpus) == pytest.approx(0.6 * 0.75 + 0.4)
    # a citation of what no query found is worth nothing, whatever the rollout shows of it
    assert cited(lambda r, c: yes, FORGED, corpus) == 0.0
    # nor what was looked up in vain, behind as many queries as were answered
    late = f"search: zzqq\n{GOOD}"
    (rewards,) = grounded.Cited(lambda pairs: [yes] * len(pairs), corpus, most=1)([group(late, GOOD)], [None])
    assert rewards[0] < rewards[1]
    # no answer is a fact; lost verdicts are none
    assert cited(lambda r, c: yes, "search: stroke", corpus) == 0.0
    assert cited(lambda r, c: lost, GOOD, corpus) is None


def test_the_sum_of_dr_tulu_and_its_state(corpus):
    example = Example("q", "?", "?", "", "t", Rubric((Criterion("a"), Criterion("b")), "physician"))
    judge = lambda pairs: [Verdict(c in ("a", "This can be a stroke .")) for _, c in pairs]  # noqa: E731
    inner = RubricReward(judge, physician([example]))
    rules = {
        "rubric": of_answers(inner),
        "citation": grounded.Cited(judge, corpus),
        "format": grounded.formatted,
        "search": grounded.searched,
    }
    rule = Weighted(rules, DR_TULU, {"rubric": inner})
    (rewards,) = rule([group(GOOD, "search: stroke", "Rest.")], [None])
    citation = cited(lambda r, c: Verdict(c == "This can be a stroke ."), GOOD, corpus)
    assert rewards == [pytest.approx(0.5 * 0.5 + 0.2 * citation + 0.2 + 0.1 / 3), pytest.approx(0.04 + 0.1 / 3), 0.0]
    assert rule.observe(1, None)["reward_format"] == pytest.approx((1.0 + 0.2 + 0.0) / 3)
    assert set(rule.tables()) == {"verdicts", "rubrics"}
    assert inner.table["rollout"].max() == 2
    lost = Weighted({"a": lambda g, r: [[None, 1.0]], "b": lambda g, r: [[1.0, 1.0]]}, {"a": 0.5, "b": 0.5}, {})
    assert lost([group("x", "y")], [None]) == [[None, 1.0]]
    with pytest.raises(ValueError, match="allowed is one for each of"):
        Weighted(rules, {"rubric": 1.0}, {})
