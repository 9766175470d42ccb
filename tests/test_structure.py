"""The rooms and the arrows between them (design: rooms and arrows), read from the files themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = ("merge", "manifolds", "evals")
SOURCES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
PACKAGE = "merge_models"
DATA = ("evals/data", "evals/report/assets", "merge/demo/data")
"""Folders of data: to setuptools, packages without code."""


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


over_sources = pytest.mark.parametrize("file", SOURCES, ids=name_of)


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def pyproject_list(key: str) -> list[str]:
    """A list of strings of [tool.setuptools], read plainly: Python 3.10 has no tomllib."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.setuptools]")[1]
    return list(ast.literal_eval("[" + section.split(f"{key} = [")[1].split("]")[0] + "]"))


def test_packages_listed_are_the_folders_on_disk() -> None:
    folders = {file.parent for file in SOURCES if file.name == "__init__.py"}
    with_code = {file.parent for file in SOURCES}
    assert with_code == folders, "a folder with code has no __init__.py"
    with_data = {file.parent for name in DATA for file in (ROOT / name).rglob("*") if file.is_file()}
    on_disk = {".".join((PACKAGE, *folder.relative_to(ROOT).parts)) for folder in folders | with_data}
    assert set(pyproject_list("packages")) == on_disk


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_typed_and_linked(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
    link = ROOT / ".typing" / PACKAGE / room
    assert link.is_symlink() and link.resolve() == ROOT / room


@over_sources
def test_arrows_run_one_way(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0]
    allowed = {
        "manifolds": ("manifolds",),
        "merge": ("merge", "manifolds"),
        "evals": ("evals", "manifolds", "merge.checkpoint", "merge.errors"),
    }[room]
    if name_of(file).startswith("merge/cli/"):
        allowed = ROOMS
    for module in imports(file):
        first = module.split(".")[0]
        assert first not in ROOMS, f"{module}: import {PACKAGE}.{module}"
        assert first not in ("tests", "examples", "benchmarks"), module
        if first == PACKAGE:
            inside = module.removeprefix(f"{PACKAGE}.")
            assert any(inside == a or inside.startswith(f"{a}.") for a in allowed), f"{room} imports {module}"


@over_sources
def test_nothing_runs_code_from_checkpoints(file: Path) -> None:
    """No pickle, no torch.load but of weights alone, no remote code, no eval."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert not banned & {module.split(".")[0] for module in imports(file)}
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "weights_only"):
            wanted = node.arg == "weights_only"
            assert isinstance(node.value, ast.Constant) and node.value.value is wanted, node.arg
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "os.system"), called
            if called == "torch.load":
                assert "weights_only" in [keyword.arg for keyword in node.keywords]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        (
            "merge_models.merge.cli",
            ("torch", "numpy", "transformers", "huggingface_hub", "pydantic", "rich", "yaml"),
        ),
        ("merge_models.merge", ("torch", "numpy", "transformers")),
        ("merge_models.merge.checkpoint", ("torch", "transformers")),
    ],
)
def test_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    script = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
