"""A copy of the tree to add things to, as whoever works on it does."""

from __future__ import annotations

import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.helpers import ROOT

ROOMS = ("merge", "manifolds", "evals")


def copied_tree(place: Path) -> Path:
    """Copies rooms, tests and docs, importable as ``merge_models`` by what runs there."""
    ignored = shutil.ignore_patterns("__pycache__")
    package = place / "merge_models"
    for room in ROOMS:
        shutil.copytree(ROOT / room, package / room, ignore=ignored)
        (place / room).symlink_to(package / room)
    for folder in ("tests", "docs"):
        shutil.copytree(ROOT / folder, place / folder, ignore=ignored)
    return place


def edit(file: Path, before: str, added: str) -> None:
    """Puts lines before the only place where a text stands."""
    text = file.read_text(encoding="utf-8")
    assert text.count(before) == 1, before
    file.write_text(text.replace(before, added + before), encoding="utf-8")


def changed(place: Path) -> list[str]:
    """Returns the files of rooms and tests that differ from this tree's, or that only one of the two has."""
    found = []
    for folder in (*ROOMS, "tests"):
        names = {
            path.relative_to(root / folder).as_posix()
            for root in (ROOT, place)
            for path in (root / folder).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        same, _, _ = filecmp.cmpfiles(ROOT / folder, place / folder, names, shallow=False)
        found += [f"{folder}/{name}" for name in names - set(same)]
    return sorted(found)


def run(place: Path, *arguments: str) -> str:
    """Runs Python in the copy and returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(place: Path, *arguments: str) -> int:
    """Runs tests in the copy, warnings as errors, and returns how many passed."""
    options = ("-q", "-p", "no:cacheprovider", "--import-mode=importlib", "-W", "error")
    told = run(place, "-m", "pytest", *options, *arguments)
    return int(told.splitlines()[-1].split(" passed")[0])
