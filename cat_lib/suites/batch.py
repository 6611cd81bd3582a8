"""Runs a suite: what is left to do, as many at once as the executor has room for, until all have ended.

A run that finished with the same parameters and code is not repeated; any other is, in its own folder, where training
goes on from its checkpoint. Killing this process loses nothing but the time since the last checkpoints: start it again.
Two suites at once share a store, and even the same suite: a run that another process works on is waited for.
"""

from __future__ import annotations

import json
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from cat_lib.files import Lock
from cat_lib.runs import places
from cat_lib.runs.children import on_stop
from cat_lib.runs.folder import ENDED, BusyError, Run, now, read_config, settle
from cat_lib.runs.mirror import Mirror
from cat_lib.runs.provenance import environment
from cat_lib.runs.store import SUITE
from cat_lib.suites.entry import BUSY, CHANGED, STORAGE
from cat_lib.suites.entry import KILLED as KILLED_CODE
from cat_lib.suites.executors import Executor, ExecutorError, Job, outcome
from cat_lib.suites.suite import Entry, Suite, SuiteError

_LOOK = 0.1  # seconds between looks at running processes
_LOOK_ELSEWHERE = 1.0
_ASK_AGAIN = 10.0  # seconds until an executor that refused a run is asked again
_PATIENCE = 60.0  # seconds of refusals with nothing of ours running, after which entries fail by them


class Word(StrEnum):
    """Where an entry stands."""

    WAITING = "waiting"  # until there is room
    RUNNING = "running"  # a job of this suite's
    ELSEWHERE = "elsewhere"  # another process works on it: finished there, or waiting again if that dies
    FINISHED = "FINISHED"
    FAILED = "FAILED"
    KILLED = "KILLED"  # stopped by us, or from outside
    SKIPPED = "skipped"  # finished before, or by another process meanwhile
    LEFT = "left"  # --retry-failed, and it had not failed
    NOT_STARTED = "not started"  # the suite was stopped first


@dataclass
class State:
    """An entry, where it stands and why."""

    entry: Entry
    word: Word = Word.WAITING
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
    mirror: Mirror | None
    show: Callable[[Batch], None]
    stops: int = 0
    _waiting: deque[State] = field(default_factory=deque)
    refusal: str = ""  # why the executor takes no more runs now: queues have limits, and count a run that has ended
    _ask: float = 0.0  # when to ask it again
    _idle: float = 0.0  # since when it refuses and nothing of ours runs

    def run(self) -> list[State]:
        """Start, look and end, until nothing waits and nothing runs."""
        self._waiting.extend(s for s in self.states if s.word == Word.WAITING)
        told = 0
        while self._waiting or self._in(Word.RUNNING, Word.ELSEWHERE):
            while self._waiting and not self.stops and len(self._in(Word.RUNNING)) < self.executor.jobs:
                if self.refusal and time.time() < self._ask:
                    break
                self._start(self._waiting.popleft())
            for state in self._in(Word.RUNNING):
                if state.job and state.job.done():
                    self._ended(state, *outcome(state.job))
            for state in self._in(Word.ELSEWHERE):
                self._look_elsewhere(state)
            if self.stops:
                for state in (*self._waiting, *self._in(Word.ELSEWHERE)):
                    state.word = Word.NOT_STARTED
                self._waiting.clear()
            if told < min(self.stops, 2):  # the second time ends them at once
                told += 1
                for state in self._in(Word.RUNNING):
                    if state.job:
                        state.job.cancel()
            self.show(self)
            time.sleep(_LOOK)
        return self.states

    def _in(self, *words: Word) -> list[State]:
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
        if not self.refusal or self._in(Word.RUNNING):
            self._idle = time.time()
        try:
            state.job = self.executor.start(json.dumps(spec), entry.folder / "output.log")
        except (OSError, ExecutorError) as error:
            if isinstance(error, ExecutorError) and time.time() - self._idle < _PATIENCE:
                self.refusal, self._ask = str(error), time.time() + _ASK_AGAIN
                self._waiting.appendleft(state)
            else:  # and those that wait are refused at once, not after as many waits
                state.word, state.error = Word.FAILED, f"could not be started: {error}"
            return
        state.word, state.started, self.refusal = Word.RUNNING, time.time(), ""
        if self.mirror:
            self.mirror.add(entry.folder)

    def _ended(self, state: State, code: int, known: str) -> None:
        folder, state.seconds, state.job = state.entry.folder, time.time() - state.started, None
        self._idle = time.time()
        if code == BUSY:
            state.word = Word.ELSEWHERE
            return
        if code == CHANGED:
            state.word = Word.FAILED
            state.error = "the code has changed since the suite started; start the suite again"
            return
        # a process killed from outside leaves a folder that says RUNNING, and a full disk one that can't be written
        said = Word.KILLED if code < 0 or code == KILLED_CODE else Word.FAILED
        reason = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == STORAGE:
            line = _last_line(folder / "output.log") or "the disk is full or read-only"
            reason = f"could not write to {folder}: {line}"
        reason = known or reason
        try:
            settle(folder, said, reason)
        except (OSError, BusyError) as error:
            reason = f"{reason}; {error}"
        config = read_config(folder)
        ended = config.get("status") in ENDED
        state.word = Word(config["status"]) if ended else said
        state.error = (config.get("error") if ended else "") or ("" if state.word == Word.FINISHED else reason)
        if self.mirror:
            self.mirror.end(folder, **({} if ended else {"status": said, "error": reason}))

    def _look_elsewhere(self, state: State) -> None:
        """Another process works on it: done if it finishes there, ours again if it dies."""
        if time.time() - state.started < _LOOK_ELSEWHERE:
            return
        state.started = time.time()
        if Lock(state.entry.folder / "run.lock").holder():
            return
        if state.entry.status == "FINISHED":
            state.word, state.note = Word.SKIPPED, "finished by another process"
            if self.mirror:
                self.mirror.end(state.entry.folder)
        else:
            state.word = Word.WAITING
            self._waiting.append(state)


def plan(chosen: Sequence[Entry], retry_failed: bool) -> list[State]:
    """What is to be done with each entry: skipped if it finished, with `retry_failed` also if it was never begun."""
    states = []
    for entry in chosen:
        state, known = State(entry), entry.status
        if known == "FINISHED":
            state.word, state.note = Word.SKIPPED, "finished before, same parameters and code"
        elif retry_failed and known not in ("FAILED", "KILLED", "RUNNING"):
            state.word, state.note = Word.LEFT, "not failed before"
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
        mirror = Mirror() if places.tracked() else None
        parent = _parent(suite, executor)
    except OSError as error:
        advice = "make room or change its rights"
        raise SuiteError(f"{suite.folder} can't be written ({error.strerror}): {advice}") from error
    batch = Batch(suite, states, executor, mirror, show)
    if mirror:
        mirror.add(parent.dir)
        for state in states:  # what finished while the store, or the suite that would have sent it, was away
            if state.word == Word.SKIPPED:
                mirror.end(state.entry.folder)

    def stop(_: int) -> None:
        batch.stops += 1

    with on_stop(stop):
        try:
            batch.run()
        finally:
            lock.release()
            if lock.acquire():  # or another process still runs this suite, and says how it ended
                _end(parent, batch)
            if mirror:
                mirror.close()
            lock.release()
    return batch.stops > 0


def _end(parent: Run, batch: Batch) -> None:
    words = Counter(s.word for s in batch.states)
    failed = words[Word.FAILED] + words[Word.KILLED]
    open_ = words[Word.RUNNING] + words[Word.WAITING] + words[Word.ELSEWHERE]  # after an error of our own
    status = "KILLED" if batch.stops else "FAILED" if failed + open_ else "FINISHED"
    finished = words[Word.FINISHED] + words[Word.SKIPPED]
    counts = {"entries": len(batch.suite.entries), "entries_finished": finished, "entries_failed": failed}
    try:
        parent.metrics(counts)
        parent.end(status)
    except OSError as error:
        print(f"the suite's own result could not be written: {error}", flush=True)
    if batch.mirror:
        batch.mirror.end(parent.dir, status=status)


def _parent(suite: Suite, executor: Executor) -> Run:
    run = Run(suite.folder)
    known = read_config(suite.folder)
    tags = {"suite": suite.name, "executor": type(executor).__name__.lower(), "host": socket.gethostname()}
    about = {"notebook": SUITE, "run": suite.name, "started": now()} | known
    run.update_config(**about | {"tags": tags, "status": "RUNNING", "ended": None, **environment()})
    return run


def _checkpoints(folder: Path) -> bool:
    return next(folder.rglob("checkpoints/checkpoint-*/trainer_state.json"), None) is not None


def _last_line(path: Path) -> str:
    try:
        lines = path.read_text(errors="replace").rstrip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
