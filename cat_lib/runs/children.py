"""Signals, and a server with all that it starts, ended with this process, however this one ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

_GRACE = 5  # seconds from SIGTERM to SIGKILL
# a shell at the other end of a pipe on which nothing comes: `read` ends when this process does, if it was killed too
_WATCH = f"read _; kill -s TERM -- -$1 && sleep {_GRACE} && kill -s KILL -- -$1"


@contextmanager
def on_stop(stop: Callable[[int], None], *more: signal.Signals) -> Iterator[None]:
    """Meanwhile Ctrl-C, SIGTERM, SIGHUP and `more` call `stop`; one that is ignored stays so: nohup ignores SIGHUP."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *more)
    taken = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN]
    before = {n: signal.signal(n, lambda number, _: stop(number)) for n in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command to its end, or until a signal comes, and then end its whole process group.

    Returns the command's exit code, or 128 and the number of the signal. A second signal does not wait for the end.
    """
    caught, group = list[int](), list[int]()
    overdue = float("inf")

    def stop(number: int) -> None:
        nonlocal overdue
        caught.append(number)
        overdue = time.monotonic() + _GRACE
        for pid in group:
            _kill(pid, signal.SIGTERM if len(caught) == 1 else signal.SIGKILL)

    with on_stop(stop):
        server = subprocess.Popen(command, env=dict(environment), start_new_session=True)
        group.append(server.pid)
        words = ["sh", "-c", _WATCH, "watch", str(server.pid)]
        watch = subprocess.Popen(words, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        if caught:
            _kill(server.pid, signal.SIGTERM)
        while server.poll() is None and time.monotonic() < overdue:
            time.sleep(0.1)
        _kill(server.pid, signal.SIGTERM)  # what a server that ended by itself has left
        overdue = min(overdue, time.monotonic() + _GRACE)
        while _kill(server.pid, 0) and time.monotonic() < overdue:
            time.sleep(0.1)
        _kill(server.pid, signal.SIGKILL)
        watch.kill()
        watch.communicate()
        code = server.wait()
    return 128 + caught[0] if caught else code


def _kill(group: int, number: int) -> bool:
    """Send a signal to a process group; whether there is one."""
    with suppress(ProcessLookupError):
        os.killpg(group, number)
        return True
    return False
