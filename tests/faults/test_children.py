"""Real servers with real workers, and real signals to what started them."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request

import psutil
import pytest

from small import free_port, start

pytestmark = pytest.mark.fault
# a server whose workers outlive it, one of them deaf to all but SIGKILL
SERVER = """
import os, signal, subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(300)"
workers = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for code in (deaf, "input()")]
workers[0].stdout.readline()
print(*[w.pid for w in workers], os.getpid(), flush=True)
time.sleep({seconds})
"""
SERVE = """
import os, sys
from cat_lib.runs.children import serve
sys.exit(serve([sys.executable, "-c", sys.argv[1]], os.environ))
"""


def serving(seconds: float = 300, **options: object) -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    command = [sys.executable, "-c", SERVE, SERVER.format(seconds=seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    return process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    """Whether they end in time; one that nobody has waited for yet has ended."""
    deadline = time.monotonic() + seconds
    while any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_all_that_a_server_started_ends_with_us(number):
    process, started = serving()
    process.send_signal(number)
    code = process.wait(20)
    assert code == (-signal.SIGKILL if number == signal.SIGKILL else 128 + number)
    assert gone(started, 20 if number == signal.SIGKILL else 1)


def test_a_server_that_ends_by_itself_leaves_nothing_and_its_exit_code():
    process, started = serving(seconds=0.5)
    assert process.wait(20) == 0
    assert gone(started, 1)


def test_a_hangup_that_is_ignored_stays_so():
    process, started = serving(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert gone(started, 1)


def test_mlflows_pages_leave_no_worker_and_their_port_free_and_no_secret_among_the_processes(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}?password=secret")
    port = free_port()
    process = start(store, "ui", "--port", port, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
            break
        except OSError:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.3)
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) > 2
    assert not [word for p in started for word in p.cmdline() if "secret" in word]
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert gone(started, 1)
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
