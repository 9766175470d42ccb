"""Runs cases and says what was wrong with how they ended.

Most run in this process, one after the other, so that libraries are loaded once. So a case finds what earlier
ones left in caches, and the start and end of a process are not in it. Therefore one in ``WHOLE`` runs as a
process of its own; of these, time and memory are not measured, since most of it is for loading libraries.
"""

from __future__ import annotations

import os
import resource
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from safetensors import safe_open

from merge_models.merge.cli import main

from . import cases
from .mutate import SECRET

MAX_SECONDS, MAX_BYTES = 2.0, 200 << 20
ROOM = 4 << 30
"""Address space beyond that of the idle process: a case that wants more has no memory, and the machine stays
well."""

WHOLE = 401
"""Prime, so that cases of every kind are among them."""


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        number: the case.
        message: the line of error; empty for a success.
        seconds: of processor time.
        nbytes: memory at its peak, above that of the idle process.
        wrong: what may not be; empty where all is well.
    """

    number: int
    message: str
    seconds: float
    nbytes: int
    wrong: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, what it printed, and what it raised instead, in words."""

    code: int
    output: str
    error: str
    raised: str = ""


def _here(arguments: list[str]) -> Ended:
    result = CliRunner().invoke(main, arguments, prog_name="merge-models")
    failure = result.exception
    if failure is None or isinstance(failure, SystemExit):
        return Ended(result.exit_code, result.stdout, result.stderr)
    return Ended(1, result.stdout, result.stderr, f"{type(failure).__name__}: {failure}"[:500])


def _in_a_process(arguments: list[str]) -> Ended:
    command = [sys.executable, "-m", "merge_models.merge.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return Ended(done.returncode, done.stdout, done.stderr)


class Bench:
    """A folder with the templates, a copy of which each case spoils; use as a context manager."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self._back = os.getcwd()
        cases.write_templates(self._root / "templates")
        for number in range(2 * len(cases.KINDS)):  # what is loaded once is not a case's cost
            self._perform(number, self._root / "warm", _here)
        self._idle = _memory("VmRSS")

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        os.chdir(self._back)
        shutil.rmtree(self._root, ignore_errors=True)

    def run(self, number: int, keep: Path | None = None) -> Outcome:
        """Runs a case; its files stay only in ``keep``."""
        _forget_peak()
        call = _in_a_process if number % WHOLE == WHOLE - 1 else _here
        message, seconds, wrong = self._perform(number, keep or self._root / "case", call)
        nbytes = _memory("VmHWM") - self._idle
        if seconds > MAX_SECONDS:
            wrong.append(f"took {seconds:.1f} s")
        if nbytes > MAX_BYTES:
            wrong.append(f"took {nbytes >> 20} MB")
        return Outcome(number, message, seconds, nbytes, tuple(wrong))

    def _perform(
        self, number: int, place: Path, call: Callable[[list[str]], Ended]
    ) -> tuple[str, float, list[str]]:
        shutil.copytree(self._root / "templates", place, symlinks=True)
        (place / "outs").mkdir()
        arguments = cases.make(number, place)
        before, around = _listing(place, "outs"), sorted(os.listdir(place.parent))
        os.chdir(place)
        started = time.process_time()
        ended = call(arguments)
        seconds = time.process_time() - started
        os.chdir(self._back)
        wrong: list[str] = []
        if ended.raised:
            wrong.append(ended.raised)
        elif ended.code == 0:
            wrong += _faults_of_success(place, arguments)
        else:
            wrong += _faults_of_refusal(ended.error, ended.code, place)
        if not (ended.output + ended.error).replace("\n", "").isprintable():
            wrong.append("prints control characters")
        if _listing(place, "outs") != before or sorted(os.listdir(place.parent)) != around:
            wrong.append("changed something beside its target")
        if place.parent == self._root:
            shutil.rmtree(place)
        lines = ended.error.splitlines()
        return (lines[-1] if ended.code and lines else ""), seconds, wrong


def _faults_of_success(place: Path, arguments: list[str]) -> list[str]:
    names = [name for name in os.listdir(place / "outs") if not name.startswith(".")]
    if arguments[0] == "plan":
        return [] if not names else ["a plan wrote something"]
    if names != ["out"]:
        return [f"left {names}"]
    wrong = []
    for file in (place / "outs" / "out").rglob("*"):
        if file.is_symlink() or not (file.is_file() or file.is_dir()):
            wrong.append(f"made {file.name}, which is no plain file")
        elif file.suffix == ".safetensors":
            with safe_open(file, "np") as opened:
                list(opened.keys())
        elif file.is_file() and SECRET.encode() in file.read_bytes():
            wrong.append(f"gave the canary's secret away in {file.name}")
    return wrong


def _faults_of_refusal(text: str, code: int, place: Path) -> list[str]:
    wrong = [] if code == 2 else [f"exit code {code}"]
    errors = [line for line in text.splitlines() if line.startswith("Error: ")]
    if len(errors) != 1 or not text.endswith(f"{errors[0]}\n"):
        wrong.append(f"no single line of error: {text[-300:]!r}")
    elif len(errors[0]) > 2100 or "Traceback" in text:
        wrong.append("an error that is no line")
    elif "not enough memory" in text:
        wrong.append("took all memory")
    if any(not name.startswith(".") for name in os.listdir(place / "outs")):
        wrong.append("left a target behind")
    return wrong


def _listing(folder: Path, without: str) -> dict[str, object]:
    """Names, kinds and contents of everything; of what is no small plain file, its size."""
    found: dict[str, object] = {}
    for top, folders, files in os.walk(folder):
        if Path(top) == folder and without in folders:
            folders.remove(without)
        for name in (*folders, *files):
            path = Path(top) / name
            status = path.lstat()
            plain = stat.S_ISREG(status.st_mode) and status.st_size < 1 << 24
            found[str(path)] = path.read_bytes() if plain else (status.st_mode, status.st_size)
    return found


def limit_memory() -> None:
    """Lets this process have ``ROOM`` more address space, where the system tells what it has."""
    now = _memory("VmSize")
    if now:
        resource.setrlimit(resource.RLIMIT_AS, (now + ROOM, resource.RLIM_INFINITY))


def _memory(key: str) -> int:
    """Bytes of this process's memory, from Linux's /proc; 0 elsewhere."""
    if sys.platform != "linux":
        return 0
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{key}:"))


def _forget_peak() -> None:
    """Lets VmHWM start anew, where the system allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
