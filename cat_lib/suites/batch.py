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
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum

from cat_lib.files import Lock
from cat_lib.runs.children import on_stop
from cat_lib.runs.folder import ENDED, BusyError, Run, now, read_config, settle
from cat_lib.runs.mirror import Mirror
from cat_lib.runs.provenance import environment
from cat_lib.runs.store import SUITE
from cat_lib.suites.entry import BUSY, CHANGED, KILLED, STORAGE
from cat_lib.suites.executors import Executor, ExecutorError, Job, outcome
from cat_lib.suites.suite import Entry, Suite, SuiteError

_LOOK = 0.1  # seconds between looks at running processes
_LOOK_ELSEWHERE = 1.0
_ASK_AGAIN = 10.0  # seconds until an executor that refused a run is asked again
_PATIENCE = 6  # refusals with nothing of ours running, after which entries fail by them


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
    why: str = ""
    started: float = 0.0
    seconds: float = 0.0
    job: Job = field(init=False, repr=False)  # once it runs


@dataclass
class Batch:
    """A suite under way. `run` goes on until nothing waits and nothing runs; `states` say how each entry ended."""

    suite: Suite
    states: list[State]
    executor: Executor
    mirror: Mirror
    show: Callable[[Batch], None]
    stops: int = 0
    refusal: str = ""  # why the executor takes no more runs now: queues have limits, and count a run that has ended
    _ask: float = 0.0  # when to ask it again
    _refusals: int = 0  # since something of ours ran

    def run(self) -> None:
        """Start, look and end."""
        told = 0
        while self.found(Word.WAITING, Word.RUNNING, Word.ELSEWHERE):
            for state in self.found(Word.WAITING):
                refused = self.refusal and time.time() < self._ask
                if self.stops or refused or len(self.found(Word.RUNNING)) >= self.executor.jobs:
                    break
                self._start(state)
            for state in self.found(Word.RUNNING):
                if state.job.done():
                    self._ended(state, *outcome(state.job))
            for state in self.found(Word.ELSEWHERE):
                self._look_elsewhere(state)
            if self.stops:
                for state in self.found(Word.WAITING, Word.ELSEWHERE):
                    state.word = Word.NOT_STARTED
            if told < min(self.stops, 2):
                told += 1
                for state in self.found(Word.RUNNING):
                    state.job.cancel(told > 1)  # the second time ends them at once
            self.show(self)
            time.sleep(_LOOK)

    def found(self, *words: Word) -> list[State]:
        """The entries that stand there."""
        return [s for s in self.states if s.word in words]

    def _start(self, state: State) -> None:
        entry = state.entry
        labels = {"suite": self.suite.name, "entry": entry.name, "code": entry.code}
        spec = {"notebook": entry.notebook, "parameters": entry.parameters, "folder": entry.folder, "labels": labels}
        try:
            state.job = self.executor.start(json.dumps(spec, default=str), entry.folder / "output.log")
        except (OSError, ExecutorError) as error:
            self._refusals = 0 if self.found(Word.RUNNING) else self._refusals + 1
            if isinstance(error, ExecutorError) and self._refusals <= _PATIENCE:
                self.refusal, self._ask = str(error), time.time() + _ASK_AGAIN
            else:  # and those that wait are refused at once, not after as many waits
                state.word, state.why = Word.FAILED, f"could not be started: {error}"
            return
        state.word, state.started, self.refusal, self._refusals = Word.RUNNING, time.time(), "", 0
        self.mirror.add(entry.folder)

    def _ended(self, state: State, code: int, known: str) -> None:
        folder, state.seconds = state.entry.folder, time.time() - state.started
        if code == BUSY:
            state.word = Word.ELSEWHERE
            return
        if code == CHANGED:
            state.word, state.why = Word.FAILED, "the code has changed since the suite started; start the suite again"
            return
        said = Word.KILLED if code < 0 or code == KILLED else Word.FAILED
        reason = known or (f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}")
        if code == STORAGE:
            reason = f"could not write to {folder}: the disk is full or read-only"
            with suppress(OSError, IndexError):
                last = (folder / "output.log").read_text(errors="replace").rstrip().splitlines()[-1]
                reason = f"could not write to {folder}: {last[:300]}"
        try:
            settle(folder, said, reason)
        except (OSError, BusyError) as error:
            reason += f"; {error}"
        config, unsaid = read_config(folder), dict[str, str]()
        if config.get("status") not in ENDED:  # it was killed from outside, or its folder can't be written
            config = unsaid = {"status": said, "error": reason}
        state.word = Word(config["status"])
        if state.word != Word.FINISHED:
            state.why = config.get("error") or reason
        self.mirror.end(folder, **unsaid)

    def _look_elsewhere(self, state: State) -> None:
        """Another process works on it: done if it finishes there, ours again if it dies."""
        if time.time() - state.started < _LOOK_ELSEWHERE:
            return
        state.started = time.time()
        if Lock(state.entry.folder / "run.lock").holder():
            return
        state.word = Word.WAITING
        if state.entry.status == "FINISHED":
            state.word, state.why = Word.SKIPPED, "finished by another process"
            self.mirror.end(state.entry.folder)


def plan(chosen: Sequence[Entry], retry_failed: bool) -> list[State]:
    """What is to be done with each entry: skipped if it finished, with `retry_failed` also if it was never begun."""
    states = []
    for entry in chosen:
        state, known = State(entry), entry.status
        if known == "FINISHED":
            state.word, state.why = Word.SKIPPED, "finished before, same parameters and code"
        elif retry_failed and known not in ("FAILED", "KILLED", "RUNNING"):
            state.word, state.why = Word.LEFT, "not failed before"
        elif known != "missing":
            saved = any(entry.folder.rglob("checkpoints/checkpoint-*/trainer_state.json"))
            state.why = f"was {known}: again" + (", from its checkpoint" if saved else "")
        elif changed := entry.changed():
            state.why = f"changed since its last run ({changed}): runs anew"
        states.append(state)
    return states


def run_suite(suite: Suite, states: list[State], executor: Executor, show: Callable[[Batch], None]) -> bool:
    """Run a planned suite under its parent run, `states` saying how its entries end; returns whether it was stopped.

    Raises SuiteError if the results folder can't be written, TrackingError if the store can't be used now.
    """
    try:
        parent, lock = Run(suite.folder), Lock(suite.folder / "suite.lock")
        (suite.folder / "suite.yaml").write_bytes(suite.file.read_bytes())
        lock.acquire(shared=True)
        mirror = Mirror()
        tags = {"suite": suite.name, "executor": executor.name, "host": socket.gethostname()}
        about = {"notebook": SUITE, "run": suite.name, "started": now()} | read_config(suite.folder)
        parent.update_config(**about | {"tags": tags, "status": "RUNNING", "ended": None, **environment()})
    except OSError as error:
        advice = "make room or change its rights"
        raise SuiteError(f"{suite.folder} can't be written ({error.strerror}): {advice}") from error
    batch = Batch(suite, states, executor, mirror, show)
    mirror.add(parent.dir)
    for state in batch.found(Word.SKIPPED):  # finished while the store, or who would have sent it, was away
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
            mirror.close()
            lock.release()
    return batch.stops > 0


def _end(parent: Run, batch: Batch) -> None:
    failed = len(batch.found(Word.FAILED, Word.KILLED))
    left = batch.found(Word.RUNNING, Word.WAITING, Word.ELSEWHERE)  # after an error of our own
    status = "KILLED" if batch.stops else "FAILED" if failed or left else "FINISHED"
    finished = len(batch.found(Word.FINISHED, Word.SKIPPED))
    try:
        parent.metrics({"entries": len(batch.suite.entries), "entries_finished": finished, "entries_failed": failed})
        parent.end(status)
    except OSError as error:
        print(f"the suite's own result could not be written: {error}", flush=True)
    batch.mirror.end(parent.dir, status=status)
