"""YAML as plain values, read strictly: no key twice, no tags, and bounded in size, aliases written out."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import yaml

from merge_models.merge.errors import RecipeError, printable

MAX_LETTERS = 1 << 20
"""Of a text, and of all its values."""

MAX_VALUES = 25_000
MAX_DEPTH = 32
MAX_NUMBER = 1000
"""Digits."""


def documents(text: str) -> list[Any]:
    """Returns plain values from each document of a YAML text.

    Raises:
        RecipeError: it is not YAML, or names a value that no plain value is.
    """
    with _plain_errors():
        return list(yaml.load_all(text, Loader=_StrictLoader))


def parse_yaml(text: str) -> Any:
    """Returns plain values from YAML.

    Raises:
        RecipeError: it is not YAML, or names a value that no plain value is.
    """
    with _plain_errors():
        return yaml.load(text, Loader=_StrictLoader)


@contextmanager
def _plain_errors() -> Iterator[None]:
    try:
        yield
    except (
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        ArithmeticError,
        AttributeError,
        TypeError,
    ) as error:
        # PyYAML's own constructors raise the last five, for dates and tagged values such as !!bool x.
        mark = getattr(error, "problem_mark", None)
        line = f" near line {mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or "a value is not readable"
        raise RecipeError(f"not valid YAML{line}: {printable(str(reason))}") from None


class _StrictLoader(yaml.SafeLoader):
    """Plain values only, no key given twice, and bounded in size: an alias (``*name``) counts as all that it
    stands for, so that a few lines cannot stand for gigabytes, and is never a part of that."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._values = self._letters = self._depth = self._deepest = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event: Any = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            node: Any = super().compose_node(parent, index)
            if not hasattr(node, "extent"):
                self._refuse(f"the alias '*{event.anchor}' is a part of what it stands for", event)
            values, letters, height = node.extent
            self._count(values, letters, height, event)
            return node
        if event.anchor is not None and event.anchor in self.anchors:
            self._refuse(f"the anchor '&{event.anchor}' stands twice", event)
        before, outer = (self._values, self._letters), self._deepest
        self._deepest = self._depth
        self._count(1, len(event.value) if isinstance(event, yaml.ScalarEvent) else 0, 1, event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        height = self._deepest - self._depth
        node.extent = (self._values - before[0], self._letters - before[1], height)
        self._deepest = max(outer, self._deepest)
        return node

    def _count(self, values: int, letters: int, height: int, at: Any) -> None:
        """Takes in more values with so many letters, nested so deep."""
        self._values += values
        self._letters += letters
        self._deepest = max(self._deepest, self._depth + height)
        if self._values > MAX_VALUES:
            self._refuse(f"more than {MAX_VALUES} values", at)
        if self._letters > MAX_LETTERS:
            self._refuse(f"more than {MAX_LETTERS} letters in values", at)
        if self._deepest > MAX_DEPTH:
            self._refuse("nested too deeply", at)

    def flatten_mapping(self, node: Any) -> None:
        """Puts the keys of ``<<`` among a map's own ones, of which each is given once."""
        if not hasattr(node, "own_keys"):
            node.own_keys = [key_node for key_node, _ in node.value]
            self._check_keys(node.own_keys)
        super().flatten_mapping(node)

    def construct_scalar(self, node: Any) -> Any:
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > MAX_NUMBER:
            self._refuse("a number with too many digits", node)
        return super().construct_scalar(node)

    def _refuse(self, problem: str, at: Any) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=at.start_mark)

    def _check_keys(self, nodes: Sequence[Any]) -> None:
        keys: set[Any] = set()
        for node in nodes:
            is_sign = node.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")  # << and =
            key = node.value if is_sign else self.construct_object(node, deep=True)
            if not isinstance(key, Hashable):
                self._refuse("a key is a list or map", node)
            if key in keys:
                self._refuse(f"key '{printable(str(key))}' stands twice", node)
            keys.add(key)
