"""Signals, and a server with all that it starts, ended with this process, however this one ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

# a shell that waits for a line, or for the end of the process that could write one, if it was killed: then it ends a
# process group, at the latest in 5 s
_WATCH = """read _; kill -s TERM -- -$1
for _ in $(seq 50); do kill -s 0 -- -$1 || exit; sleep 0.1; done
kill -s KILL -- -$1"""


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
    caught, servers = list[int](), list[subprocess.Popen[bytes]]()
    listen, tell = os.pipe()

    def stop(number: int) -> None:
        caught.append(number)
        os.write(tell, b"\n")
        for server in servers if len(caught) > 1 else ():
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)

    with on_stop(stop):
        servers.append(subprocess.Popen(command, env=dict(environment), start_new_session=True))
        words = ["sh", "-c", _WATCH, "watch", str(servers[0].pid)]
        watch = subprocess.Popen(words, stdin=listen, stderr=subprocess.DEVNULL, start_new_session=True)
        os.close(listen)
        code = servers[0].wait()
        os.write(tell, b"\n")  # for what a server that ended by itself has left
        watch.wait()
    os.close(tell)
    return 128 + caught[0] if caught else code
