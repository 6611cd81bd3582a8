"""Runs a suite: what is left to do, as many at once as the executor has room for, until all have ended.

A run that finished with the same parameters and code is not repeated; any other is, in its own folder, where training
goes on from its checkpoint. Killing this process loses nothing but the time since the last checkpoints: start it again.
Two suites at once share a store, and even the same suite: a run that another process works on is waited for.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cat_lib.files import Lock
from cat_lib.runs import tracking
from cat_lib.runs.mirror import Mirrors
from cat_lib.runs.store import SUITE, experiment_of, run_key, statuses
from cat_lib.runs.tracking import Run, read_config
from cat_lib.suites.entry import BUSY, CHANGED, KILLED, STORAGE
from cat_lib.suites.executors import Executor, ExecutorError, Job
from cat_lib.suites.suite import Entry, Suite, SuiteError

_LOOK = 0.1  # seconds between looks at running processes
_LOOK_ELSEWHERE = 1.0
_ASK_AGAIN = 10.0  # seconds until an executor that refused a run is asked again
_PATIENCE = 60.0  # seconds of refusals with nothing of ours running, after which entries fail by them


@dataclass
class State:
    """Where an entry stands: waiting, running, elsewhere, or how it ended (FINISHED, FAILED, KILLED, skipped)."""

    entry: Entry
    word: str = "waiting"
    error: str = ""
    job: Job | None = None
    started: float = 0.0
    seconds: float = 0.0
    note: str = ""


@dataclass
class Batch:
    """A suite under way. `run` returns how each entry ended."""

    suite: Suite
    states: list[State]
    executor: Executor
    mirrors: Mirrors | None
    show: Callable[[Batch], None]
    stops: int = 0
    _waiting: deque[State] = field(default_factory=deque)
    refusal: str = ""  # why the executor takes no more runs now
    _refused: float = 0.0  # when it refused first
    _again: float = 0.0  # when to ask it again
    _ended_last: float = 0.0  # when a run of ours did

    def run(self) -> list[State]:
        """Start, look and end, until nothing waits and nothing runs."""
        self._waiting.extend(s for s in self.states if s.word == "waiting")
        told = 0
        while self._waiting or self._in("running", "elsewhere"):
            while self._waiting and not self.stops and len(self._in("running")) < self.executor.jobs:
                if self.refusal and time.time() < self._again:
                    break
                self._start(self._waiting.popleft())
            for state in self._in("running"):
                code = state.job.poll() if state.job else None
                if code is not None:
                    self._ended(state, code)
            for state in self._in("elsewhere"):
                self._look_elsewhere(state)
            if self.stops:
                for state in self._waiting:
                    state.word = "not started"
                self._waiting.clear()
                if told < self.stops:
                    told = self.stops
                    for state in self._in("running"):
                        if state.job:
                            state.job.stop(told > 1)
                for state in self._in("elsewhere"):
                    state.word = "not started"
            self.show(self)
            time.sleep(_LOOK)
        return self.states

    def _in(self, *words: str) -> list[State]:
        return [s for s in self.states if s.word in words]

    def _start(self, state: State) -> None:
        entry = state.entry
        tags = {"suite": self.suite.name, "entry": entry.name, "code": entry.code}
        spec = {
            "notebook": str(entry.notebook),
            "parameters": entry.parameters,
            "folder": str(entry.folder),
            "labels": tags,
        }
        try:
            state.job = self.executor.start(json.dumps(spec), entry.folder / "output.log")
        except (OSError, ExecutorError) as error:
            if isinstance(error, ExecutorError) and self._may_pass(str(error)):
                self._waiting.appendleft(state)
                return
            state.word, state.error = "FAILED", f"could not be started: {error}"
            return
        state.word, state.started, self.refusal = "running", time.time(), ""
        if self.mirrors:
            self.mirrors.add(entry.folder)

    def _may_pass(self, refusal: str) -> bool:
        """Whether to ask again later: queues have limits, and count a run for a while after it has ended."""
        now = time.time()
        if not self.refusal:
            self._refused = now
        self.refusal = refusal
        if self._in("running") or now - max(self._refused, self._ended_last) < _PATIENCE:
            self._again = now + _ASK_AGAIN
            return True
        return False  # and those that wait are refused at once, not after as many waits

    def _ended(self, state: State, code: int) -> None:
        folder, job, state.seconds = state.entry.folder, state.job, time.time() - state.started
        state.job, self._ended_last = None, time.time()
        if code == BUSY:
            state.word = "elsewhere"
            return
        if code == CHANGED:
            state.word, state.error = "FAILED", "the code has changed since the suite started; start the suite again"
            return
        # a process killed from outside leaves a folder that says RUNNING, and a full disk one that can't be written
        said = "KILLED" if code < 0 or code == KILLED else "FAILED"
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if job and job.reason:
            reason = job.reason
        if code == STORAGE:
            reason = (
                f"could not write to {folder}: {_last_line(folder / 'output.log') or 'the disk is full or read-only'}"
            )
        try:
            tracking.settle(folder, said, reason)
        except (OSError, tracking.BusyError) as error:
            reason = f"{reason}; {error}"
        config = read_config(folder)
        ended = config.get("status") in tracking.ENDED
        state.word = config["status"] if ended else said
        state.error = (config.get("error") if ended else "") or ("" if state.word == "FINISHED" else reason)
        if self.mirrors:
            self.mirrors.end(folder, *(() if ended else (said, reason)))

    def _look_elsewhere(self, state: State) -> None:
        """Another process works on it: done if it finishes there, ours again if it dies."""
        if time.time() - state.started < _LOOK_ELSEWHERE:
            return
        state.started = time.time()
        if Lock(state.entry.folder / "run.lock").holder():
            return
        if state.entry.status == "FINISHED":
            state.word, state.note = "skipped", "finished by another process"
            if self.mirrors:
                self.mirrors.end(state.entry.folder)
        else:
            state.word = "waiting"
            self._waiting.append(state)


def plan(chosen: Sequence[Entry], retry_failed: bool) -> list[State]:
    """What is to be done with each entry: skipped if it finished, with `retry_failed` also if it was never begun."""
    states = []
    for entry in chosen:
        state, known = State(entry), entry.status
        if known == "FINISHED":
            state.word, state.note = "skipped", "finished before, same parameters and code"
        elif retry_failed and known not in ("FAILED", "KILLED", "RUNNING"):
            state.word, state.note = "left", "not failed before"
        elif known != "missing":
            state.note = f"was {known}: again" + (", from its checkpoint" if _checkpoints(entry.folder) else "")
        elif changed := entry.changed():
            state.note = f"changed since its last run ({changed}): runs anew"
        states.append(state)
    return states


def run_suite(suite: Suite, states: list[State], executor: Executor, show: Callable[[Batch], None]) -> bool:
    """Run a planned suite under its parent run, `states` saying how its entries end; returns whether it was stopped.

    Raises SuiteError if the results folder can't be written, TrackingError if the store can't be used now.
    """
    try:
        suite.folder.mkdir(parents=True, exist_ok=True)
        lock = Lock(suite.folder / "suite.lock")
        (suite.folder / "suite.yaml").write_bytes(suite.file.read_bytes())
        lock.acquire(shared=True)
        mirrors = None if os.environ.get("CAT_LIB_TRACKING") == "off" else Mirrors()
        parent = _parent(suite, executor)
    except OSError as error:
        advice = "make room or change its rights"
        raise SuiteError(f"{suite.folder} can't be written ({error.strerror}): {advice}") from error
    batch = Batch(suite, states, executor, mirrors, show)
    if mirrors:
        mirrors.add(parent.dir)
        _catch_up(mirrors, parent, states)
    with _signals(batch):
        try:
            batch.run()
        finally:
            lock.release()
            if lock.acquire():  # or another process still runs this suite, and says how it ended
                _end(parent, batch)
            if mirrors:
                mirrors.close()
            lock.release()
    return batch.stops > 0


def _end(parent: Run, batch: Batch) -> None:
    words = Counter(s.word for s in batch.states)
    failed = words["FAILED"] + words["KILLED"]
    open_ = failed + words["running"] + words["waiting"] + words["elsewhere"]  # the latter after an error of our own
    status = "KILLED" if batch.stops else "FAILED" if open_ else "FINISHED"
    finished = words["FINISHED"] + words["skipped"]
    counts = {"entries": len(batch.suite.entries), "entries_finished": finished, "entries_failed": failed}
    try:
        parent.metrics(counts)
        parent.end(status)
    except OSError as error:
        print(f"the suite's own result could not be written: {error}", flush=True)
    if batch.mirrors:
        batch.mirrors.end(parent.dir, status)


def _parent(suite: Suite, executor: Executor) -> Run:
    run = Run(suite.folder)
    known = read_config(suite.folder)
    tags = {"suite": suite.name, "executor": type(executor).__name__.lower(), "host": socket.gethostname()}
    about = {"notebook": SUITE, "run": suite.name, "started": int(time.time() * 1000)} | known
    run.update_config(**about | {"tags": tags, "status": "RUNNING", "ended": None, **tracking.environment()})
    return run


def _catch_up(mirrors: Mirrors, parent: Run, states: Sequence[State]) -> None:
    """Send what finished while the store, or the suite that would have sent it, was away."""
    try:
        there = statuses(mirrors.client, experiment_of(read_config(parent.dir)))
    except Exception:  # the store has gone away since; all is sent again, which changes nothing
        there = {}
    for state in states:
        folder = state.entry.folder
        if state.word == "skipped" and there.get(run_key(state.entry.notebook.stem, folder.name)) != "FINISHED":
            mirrors.end(folder)


@contextmanager
def _signals(batch: Batch) -> Iterator[None]:
    def stop(*_: object) -> None:
        batch.stops += 1

    # one that is ignored stays so: nohup ignores SIGHUP
    known = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {n: signal.signal(n, stop) for n, handler in known.items() if handler is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _checkpoints(folder: Path) -> bool:
    return next(folder.rglob("checkpoints/checkpoint-*/trainer_state.json"), None) is not None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").rstrip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
