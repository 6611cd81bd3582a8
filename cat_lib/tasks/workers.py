"""A few processes that read what nobody trusts, each text bounded in time, memory and size. POSIX only.

`Pool` starts the processes when they are needed and hands out texts; `serve` is the loop of such a process. Both speak
JSON, a text a line. A text is lost if it takes more of its worker's processor time or memory than `serve` allows (then
the worker ends with it, and the next one goes on with the rest of the batch), or if its reply is too long.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path

from cat_lib.schema import Lost

PATIENCE = 60.0  # seconds until a worker that says nothing is ended
WORKERS = min(2, os.cpu_count() or 1)
TOGETHER = 4  # texts that a worker gets at once, which saves half of the waiting


class Pool:
    """Worker processes of one command. `slow` and `long` say of a text why it was lost; `purpose` what workers do.

    About `most` replies are remembered; none of a text that was too slow: it may be faster next time.
    """

    def __init__(self, command: Sequence[str], purpose: str, slow: Lost, long: Lost, most: int = 20_000) -> None:
        self.command, self.purpose, self.slow, self.long, self.most = command, purpose, slow, long, most
        self.remembered: dict[str, str | Lost] = {}
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """No workers yet; those of a process that forks stay its own."""
        self._threads = ThreadPoolExecutor(WORKERS, self.purpose)
        self.workers: dict[int, subprocess.Popen[bytes]] = {}  # by the thread that asks; they end with their input

    def ask(self, texts: Sequence[str]) -> dict[str, str | Lost]:
        """The reply to each text, or why it was lost. Raises RuntimeError if no worker can be started."""
        known = self.remembered
        found = {text: known[text] for text in texts if text in known}
        new = [text for text in dict.fromkeys(texts) if text not in found]
        size = min(TOGETHER, -(-len(new) // WORKERS) or 1)
        parts = [new[start : start + size] for start in range(0, len(new), size)]
        for replies in self._threads.map(self._ask, parts):  # an interrupt cancels what has not begun
            found |= replies
        if len(self.remembered) > self.most:
            self.remembered = {}
        self.remembered |= {text: reply for text, reply in found.items() if reply is not self.slow}
        return found

    def _ask(self, texts: Sequence[str]) -> dict[str, str | Lost]:
        """What this thread's worker replies. What ends or silences it is lost, and the next gets the rest."""
        found: dict[str, str | Lost] = {}
        while rest := [t for t in texts if t not in found]:
            worker = self.workers.get(threading.get_ident())
            if worker is None or worker.poll() is not None:
                worker = self.workers[threading.get_ident()] = self._start()
            assert worker.stdin is not None
            with suppress(BrokenPipeError):  # then there is no reply either
                worker.stdin.write(b"".join(json.dumps(text).encode() + b"\n" for text in rest))
            for text in rest:
                if not (line := _said(worker)):
                    found[text] = self.slow
                    break
                reply = json.loads(line)
                found[text] = self.long if reply is None else reply
        return found

    def _start(self) -> subprocess.Popen[bytes]:
        root = Path(__file__).parents[2]  # where one works may be a sympy.py, and may be no cat_lib
        worker = subprocess.Popen(
            self.command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            cwd=root, env={**os.environ, "PYTHONHASHSEED": "0"}, start_new_session=True,
        )  # fmt: skip
        if not _said(worker):
            why = f"(exit status {worker.returncode}); to see why, run {' '.join(self.command)} < /dev/null in {root}"
            raise RuntimeError(f"no worker can be started to {self.purpose} {why}")
        return worker


def _said(worker: subprocess.Popen[bytes]) -> bytes:
    """The next line of a worker. If it has ended or says nothing, it is ended, and the line is empty."""
    assert worker.stdout is not None
    line = worker.stdout.readline() if wait([worker.stdout.fileno()], PATIENCE) else b""  # a line is one write
    if line.endswith(b"\n"):
        return line
    with worker:
        worker.kill()
    return b""


def serve(reply: Callable[[str], str], first: str, seconds: float, memory: int, longest: int) -> None:
    """Reply to each line of stdin until it ends, or until one takes too much; a reply over `longest` is null.

    `seconds` are of processor time a line, so that the same is lost whatever else the machine does; `memory` are bytes
    of address space. `first` is replied to before the time counts: a first reply loads and compiles.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not pass for a reply
    with suppress(OSError, ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    reply(first)
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # its signal ends the process
        said = reply(json.loads(line))
        print(json.dumps(said if len(said) <= longest else None), file=out, flush=True)
        signal.setitimer(signal.ITIMER_PROF, 0)
