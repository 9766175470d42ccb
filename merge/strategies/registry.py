"""Which strategy a name in a recipe means: the package's own, those of installed packages, and the caller's.

A recipe never has a module imported that nobody installed for it: ``package.module:Class`` names a class that
this program has used as an object, or one that a package offers under the entry point group ``GROUP``.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from merge_models.merge import strategies
from merge_models.merge.contract.strategy import AbstractStrategy, class_text
from merge_models.merge.errors import RecipeError, did_you_mean, printable

GROUP = "merge_models.strategies"
"""The entry points by which packages offer strategies: ``name = "package.module:Class"``."""

_USED: dict[str, type[AbstractStrategy]] = {}
"""Classes of others that this program has merged with, by their text."""


def find_strategy(name: str) -> type[AbstractStrategy]:
    """Returns the strategy class of a name, an alias, or ``package.module:Class``.

    Raises:
        RecipeError: there is none, several have the name, or its package cannot be imported.

    >>> find_strategy("soup").__name__
    'Linear'
    """
    if ":" in name:
        return _find_class(name)
    own = _own_strategies(name)
    offered = [point for point in _offered() if point.name == name]
    if len(own) + len(offered) > 1:
        claims = [*(class_text(kind) for kind in own), *map(_claim, offered)]
        raise RecipeError(
            f"merge method '{printable(name)}' is claimed by {' and '.join(claims)};"
            " uninstall one, or name the class itself: merge_method: package.module:Class"
        )
    if own:
        return own[0]
    if offered:
        return _loaded(offered[0])
    known = [word for kind in strategies.STRATEGIES for word in (kind.name, *kind.aliases)]
    known += [point.name for point in _offered()]
    raise RecipeError(f"unknown merge method '{printable(name)}'{did_you_mean(name, known)}")


def strategy_name(kind: type[AbstractStrategy]) -> str:
    """Returns what recipes and manifests call a strategy class: its name, or for those of others
    ``package.module:Class``."""
    if getattr(strategies, kind.__name__, None) is kind:
        return kind.name
    text = class_text(kind)
    _USED[text] = kind
    return text


def offered_strategies() -> tuple[list[type[AbstractStrategy]], list[str]]:
    """Returns the strategies of installed packages, and a line about each that cannot be used."""
    kinds, problems = [], []
    for point in _offered():
        try:
            kinds.append(_loaded(point))
        except RecipeError as error:
            problems.append(str(error))
    return kinds, problems


def _own_strategies(name: str) -> list[type[AbstractStrategy]]:
    """The package's strategies with this name or alias. Where a file is named as the method begins
    (``dare.py`` for ``dare_ties``), it is looked into first, as loading all of them takes longer than some
    merges."""
    near = [kind for kind, file in strategies.HOMES.items() if name.startswith(file)]
    for kind in (getattr(strategies, kind) for kind in near):
        if kind.name == name:
            return [kind]
    return [kind for kind in strategies.STRATEGIES if name in (kind.name, *kind.aliases)]


def _find_class(text: str) -> type[AbstractStrategy]:
    if text in _USED:
        return _USED[text]
    for kind in strategies.STRATEGIES:
        if class_text(kind) == text:
            return kind
    for point in _offered():
        if point.value == text:
            return _loaded(point)
    raise RecipeError(
        f"unknown strategy class '{printable(text)}'; install the package that offers it under the"
        f" entry points '{GROUP}', or merge with an object of it in Python: recipes import no module"
    )


@lru_cache(maxsize=1)
def _offered() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=GROUP))


def _claim(point: EntryPoint) -> str:
    package = f" of the package {point.dist.name}" if point.dist is not None else ""
    return f"{printable(point.value)}{package}"


def _loaded(point: EntryPoint) -> type[AbstractStrategy]:
    where = f"merge method '{printable(point.name)}': {_claim(point)}"
    try:
        kind = point.load()
    except Exception as error:
        raise RecipeError(
            f"{where} cannot be imported: {type(error).__name__}: {printable(str(error), 200)};"
            " mend or uninstall the package"
        ) from None
    if not (isinstance(kind, type) and issubclass(kind, AbstractStrategy)):
        raise RecipeError(f"{where} is no subclass of AbstractStrategy; mend or uninstall the package")
    if not dataclasses.is_dataclass(kind) or getattr(kind, "__abstractmethods__", None):
        raise RecipeError(f"{where} is no dataclass with a kernel; mend or uninstall the package")
    return kind
