"""The rooms and the arrows between them (docs/design.md), read from the files themselves."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import ROOT

ROOMS = ("merge", "manifolds", "evals")
SOURCES = sorted(file for room in ROOMS for file in (ROOT / room).rglob("*.py"))
PACKAGE = "merge_models"
DATA = ("evals/data", "evals/report/assets", "merge/demo/data")
"""Folders of data: to setuptools, packages without code."""

MOST_LINES, MOST_OF_A_FUNCTION, MOST_OF_A_STRATEGY = 500, 60, 60


def name_of(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def module_of(file: Path) -> str:
    return ".".join((PACKAGE, *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


over_sources = pytest.mark.parametrize("file", SOURCES, ids=name_of)
MODULES = {module_of(file): file for file in SOURCES}


@cache
def tree_of(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it: also in functions, and for type checkers only."""
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name_of(file)}:{node.lineno} imports relatively"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file: Path) -> set[str]:
    """The modules of this project that a file imports."""
    found = set()
    for name in imports(file):
        module = name if name in MODULES else name.rpartition(".")[0]
        if module in MODULES and MODULES[module] != file:
            found.add(module)
    return found


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


FREE = ("errors", "lazy", "sizes")
"""Files of merge that every room may use."""

ORDER = ("contract", "kernels", "strategies", "recipes", "planning", "running", "publishing", "api", "cli")
"""Rooms of merge in the order of its arrows: each may use those before it, and all ``checkpoint``."""

BESIDE = {"tokenizer": "recipes", "demo": "api"}
"""Rooms beside the row, which stand where another one does."""


def place_in_merge(module: str) -> int:
    """How far along the arrows a module of merge stands."""
    parts = module.split(".")
    if len(parts) < 3 or parts[2] in FREE:
        return -2
    room = BESIDE.get(parts[2], parts[2])
    return -1 if room == "checkpoint" else ORDER.index(room)


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


@pytest.mark.parametrize("file", [f for f in SOURCES if name_of(f).startswith("merge/")], ids=name_of)
def test_arrows_inside_merge_run_one_way(file: Path) -> None:
    here = module_of(file)
    if here == f"{PACKAGE}.merge":
        return  # the front door names what is behind it
    for module in own_imports(file):
        if module.startswith(f"{PACKAGE}.merge."):
            assert place_in_merge(module) <= place_in_merge(here), f"{here} imports {module}"


def test_nothing_imports_in_a_circle() -> None:
    """Imports in functions and for type checkers count: a circle is one wherever it is hidden."""
    below = {module: own_imports(file) for module, file in MODULES.items()}
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path[path.index(module) :], module))
        if module not in done:
            for other in sorted(below[module]):
                follow(other, (*path, module))
            done.add(module)

    for module in below:
        follow(module, ())


@over_sources
def test_files_and_functions_are_short(file: Path) -> None:
    assert len(file.read_text(encoding="utf-8").splitlines()) <= MOST_LINES
    for node in ast.walk(tree_of(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = ast.get_docstring(node, clean=False)
            docstring = (first.end_lineno or 0) - first.lineno + 1 if told is not None else 0
            lines = (node.end_lineno or 0) - node.lineno + 1 - docstring
            assert lines <= MOST_OF_A_FUNCTION, f"{node.name} has {lines} lines"


def code_lines(file: Path) -> int:
    """Lines of a file without docstrings, imports, comments and blanks."""
    skipped: set[int] = set()
    for node in ast.walk(tree_of(file)):
        text = (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        )
        typing = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if text or typing or isinstance(node, ast.Import | ast.ImportFrom):
            assert isinstance(node, ast.stmt)
            skipped |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
    return sum(
        1 for n, line in lines if n not in skipped and line.strip() and not line.strip().startswith("#")
    )


STRATEGIES = [
    f
    for f in sorted((ROOT / "merge/strategies").glob("*.py"))
    if f.name not in ("__init__.py", "registry.py")
]


@pytest.mark.parametrize("file", STRATEGIES, ids=name_of)
def test_a_strategy_file_holds_one_method(file: Path) -> None:
    assert code_lines(file) <= MOST_OF_A_STRATEGY


def test_the_loop_never_asks_which_family_a_strategy_belongs_to() -> None:
    """No ``isinstance`` against a strategy or a kernel where plans are made and carried out."""
    families = {
        node.name
        for file in SOURCES
        if name_of(file).startswith(("merge/strategies/", "merge/contract/"))
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ClassDef)
    }
    for file in SOURCES:
        if not name_of(file).startswith(("merge/running/", "merge/planning/", "merge/publishing/")):
            continue
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass", "type"):
                asked = {
                    n.id for argument in node.args[1:] for n in ast.walk(argument) if isinstance(n, ast.Name)
                }
                assert not asked & families, f"{name_of(file)}:{node.lineno} asks for {asked & families}"


@over_sources
def test_nothing_runs_code_from_checkpoints(file: Path) -> None:
    """No pickle, no torch.load but of weights alone, no remote code, no eval."""
    banned = {"pickle", "marshal", "shelve", "dill", "cloudpickle"}
    assert not banned & {module.split(".")[0] for module in imports(file)}
    for node in ast.walk(tree_of(file)):
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
        ("merge_models.merge.strategies", ("torch", "geoopt", "transformers", "pydantic")),
        ("merge_models.manifolds", ("torch", "geoopt")),
        ("merge_models.evals", ("torch", "transformers")),
    ],
)
def test_imports_stay_light(module: str, absent: tuple[str, ...]) -> None:
    script = f"import {module}, sys; print([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_help_answers_at_once() -> None:
    """CPU seconds of a process, the least of three, as other processes may be in the way."""
    script = (
        "import resource, subprocess, sys;"
        "command = [sys.executable, '-m', 'merge_models.merge.cli', '--help'];"
        "subprocess.run(command, stdout=subprocess.DEVNULL);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True) for _ in range(3)]
    assert min(float(done.stdout) for done in runs) < 0.4


@pytest.mark.parametrize("file", STRATEGIES, ids=name_of)
def test_a_command_and_a_method_are_found_by_their_name(file: Path) -> None:
    from merge_models.merge.cli import COMMANDS

    for command in COMMANDS:
        assert (ROOT / f"merge/cli/{command}.py").is_file(), command
    assert (ROOT / f"tests/merge/strategies/test_{file.stem}.py").is_file(), file.stem


NAMED_IMPORT = re.compile(r"^[ >.]*from (merge_models[\w.]*) import \(?([\w, ]*)$", re.MULTILINE)


PAGES = [
    file
    for pattern in ("benchmarks/*.py", "examples/**/*.py", "docs/*.md", "*.md")
    for file in sorted(ROOT.glob(pattern))
]


@pytest.mark.parametrize("file", PAGES, ids=name_of)
def test_imports_in_programs_and_pages_are_of_what_is_there(file: Path) -> None:
    """Also those within text, which no type checker sees: programs for other processes, examples of pages."""
    for module, names in NAMED_IMPORT.findall(file.read_text(encoding="utf-8")):
        for name in filter(None, (word.split(" as ")[0].strip() for word in names.split(","))):
            home = importlib.import_module(module)
            assert hasattr(home, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"
