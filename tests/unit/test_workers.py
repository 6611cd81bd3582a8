"""Worker processes that read what nobody trusts: what they may take, and what is lost with it."""

from __future__ import annotations

import os
import sys
import threading
import time

import pytest

from cat_lib.schema import Lost
from cat_lib.tasks import workers
from cat_lib.tasks.workers import Pool

SLOW, LONG = Lost("slow"), Lost("long")
WORK = """
import os, time
from cat_lib.tasks.workers import serve

def reply(text):
    what, _, much = text.partition(" ")
    if what == "spin":
        while True: pass
    if what == "fill": return str(len(bytearray(int(much))))
    if what == "fail": raise ValueError(much)
    if what == "exit": os._exit(0)
    if what == "sleep": time.sleep(int(much))
    if what == "pid": return str(os.getpid())
    print("not a reply")
    return what.upper() * int(much or 1)

serve(reply, "first", 0.5, 1 << 30, 10)
"""


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(workers, "WORKERS", 2)
    return Pool([sys.executable, "-c", WORK], "test", SLOW, LONG)


def test_what_takes_too_much_is_lost_and_the_rest_goes_on(pool):
    texts = ["a", "spin", "b", "fill 2000000000", "c", "fail", "d", "exit", "e 10", "f 11", "\u00e9\n"]
    lost = {"spin": SLOW, "fill 2000000000": SLOW, "fail": SLOW, "exit": SLOW, "f 11": LONG}
    whole = {"a": "A", "b": "B", "c": "C", "d": "D", "e 10": "E" * 10, "\u00e9\n": "\u00c9\n"}
    start = time.monotonic()
    assert pool.ask(texts) == lost | whole
    assert pool.ask([]) == {}
    assert time.monotonic() - start < 30
    assert pool.ask(["fill 1000"]) == {"fill 1000": "1000"}


def test_a_worker_that_says_nothing_is_ended(pool, monkeypatch):
    assert pool.ask(["a"]) == {"a": "A"}
    monkeypatch.setattr(workers, "PATIENCE", 5.0)
    start = time.monotonic()
    assert pool.ask(["sleep 60", "b"]) == {"sleep 60": SLOW, "b": "B"}  # sleep takes no processor time
    assert time.monotonic() - start < 30


def test_workers_stay_between_calls_and_a_fork_has_its_own(pool):
    first = pool.ask(["pid"])
    if not (child := os.fork()):
        os._exit(0 if pool.workers == {} else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(pool.workers) == 1
    assert first["pid"] in {str(w.pid) for w in pool.workers.values()}
    threads = [threading.Thread(target=pool.ask, args=([f"x{i}"],)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pool.workers) <= workers.WORKERS


def test_a_command_that_does_not_start_is_said_with_what_to_run():
    pool = Pool([sys.executable, "-c", "raise SystemExit(3)"], "solve", SLOW, LONG)
    with pytest.raises(RuntimeError, match=r"no worker can be started to solve \(exit status 3\); to see why, run "):
        pool.ask(["a"])
