"""Every public name has an example in its docstring, and it is right."""

from __future__ import annotations

import doctest
import inspect

import pytest

import merge_models.evals


@pytest.mark.parametrize("name", merge_models.evals.__all__)
def test_an_example_is_right(name: str) -> None:
    public = getattr(merge_models.evals, name)
    module = inspect.getmodule(public)
    assert module is not None
    (found,) = doctest.DocTestFinder(recurse=False).find(public, name, module, vars(module))
    assert found.examples, f"{name} has no example"
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(found)
    assert result.failed == 0
