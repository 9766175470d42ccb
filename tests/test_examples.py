"""Every public name has an example in its docstring, and every example of the rooms is right.

Examples may name the folders ``runs/a``, ``runs/b``, ``runs/c``: models of one tensor, ``w`` of ``[2, 3]``.
"""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

import merge_models.evals
import merge_models.manifolds
import merge_models.merge
from tests.test_structure import MODULES


def is_own(room: ModuleType, name: str) -> bool:
    """Whether a name of a room is a class or a function of it."""
    value = getattr(room, name)
    return not name.startswith("_") and callable(value) and value.__module__.startswith(room.__name__)


OWN_MANIFOLDS = [name for name in dir(merge_models.manifolds) if is_own(merge_models.manifolds, name)]
PUBLIC = [
    *((merge_models.merge, name) for name in merge_models.merge.__all__),
    *((merge_models.evals, name) for name in merge_models.evals.__all__),
    *((merge_models.manifolds, name) for name in OWN_MANIFOLDS),
]
FINDER = doctest.DocTestFinder(recurse=True)


def examples_of(module: ModuleType) -> Iterator[doctest.DocTest]:
    yield from (test for test in FINDER.find(module, module.__name__) if test.examples)


@pytest.mark.parametrize(("room", "name"), PUBLIC, ids=lambda value: getattr(value, "__name__", value))
def test_a_public_name_has_an_example(room: ModuleType, name: str) -> None:
    text = getattr(room, name).__doc__
    assert text is not None and ">>> " in text


WITH_EXAMPLES = [name for name, file in MODULES.items() if ">>> " in file.read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_are_right(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, letter in enumerate("abc"):
        folder = tmp_path / "runs" / letter
        folder.mkdir(parents=True)
        save_file({"w": torch.full((2, 3), float(number))}, folder / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    found = list(examples_of(importlib.import_module(name)))
    assert found
    for test in found:
        assert doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test).failed == 0, test.name
