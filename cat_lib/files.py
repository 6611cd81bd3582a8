"""Files that survive their writer: locks that end with the process, lines and JSON that are never half there."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs


def cache_folder() -> Path:
    """`CAT_LIB_CACHE`, else the platform's cache folder for cat_lib."""
    return Path(os.environ.get("CAT_LIB_CACHE") or platformdirs.user_cache_dir("cat_lib"))


class Lock:
    """A lock on a file, held until `release` or the end of the process. It says who holds it."""

    def __init__(self, path: Path) -> None:
        self.path, self._fd = path, -1

    def acquire(self, shared: bool = False, patience: float = 0.0) -> bool:
        """Whether the lock could be had within so many seconds."""
        fd, deadline = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), time.monotonic() + patience
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(fd)
                    return False
                time.sleep(0.05)
        if not shared:
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()} {socket.gethostname()}".encode(), 0)
        self._fd = fd
        return True

    def release(self) -> None:
        """Let go; the file stays, or two processes could each lock a file of this name."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def holder(self) -> tuple[int, str] | None:
        """Process number and host of who holds it, or None; 0 and "" if that is not known."""
        if self.acquire():
            self.release()
            return None
        pid, _, host = self.path.read_text().partition(" ")
        return (int(pid) if pid.isdigit() else 0, host)


def append_line(path: Path, entry: dict[str, Any]) -> None:
    """One JSON line in one write, on a line of its own even after a process died inside one."""
    with path.open("ab+") as file:
        file.seek(max(file.tell() - 1, 0))
        torn = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file whole: a reader never sees half of it, and a full disk leaves the old one."""
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with partial.open("w") as file:
            file.write(json.dumps(content, indent=1, default=str))
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the new name on an empty file
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def read_lines(path: Path, offset: int = 0) -> Iterator[tuple[int, dict[str, Any]]]:
    """The whole JSON lines of a file from `offset`, each with the offset behind it; torn ones are passed over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return  # it may still be written
            offset += len(line)
            with suppress(ValueError):
                yield offset, json.loads(line)
