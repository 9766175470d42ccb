"""Models whose tensors have other names for the same things, read under the names of the first of them.

Two conventions are known. Checkpoints of a bare model lack the prefix that those with a head have
(``h.0.ln_1.weight``, ``transformer.h.0.ln_1.weight``): transformers loads either way. And layer norms of old
TensorFlow models have ``gamma`` and ``beta`` for ``weight`` and ``bias``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import stacks
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.wrapped import WrappedSource
from merge_models.merge.errors import counted

_NORM = re.compile(r"(.*(?:layer_?norm|norm)\.)(gamma|beta|weight|bias)", re.IGNORECASE)
_OTHER = {"gamma": "weight", "beta": "bias", "weight": "gamma", "bias": "beta"}


class Renamed(WrappedSource):
    """A model read under other names.

    Args:
        model: the model.
        names: its tensors' names, and those that they are read under.
    """

    def __init__(self, model: DiskSource, names: Mapping[str, str]) -> None:
        super().__init__(model, tensors={names.get(name, name): t for name, t in model.tensors.items()})


def with_names_of_first(models: Sequence[DiskSource]) -> tuple[tuple[DiskSource, ...], list[str]]:
    """Returns the models under the names of the first, and remarks on those that are read so."""
    first = models[0]
    result: list[DiskSource] = [first]
    told = []
    for model in models[1:]:
        names = _renamed(model.tensors, first.tensors)
        result.append(Renamed(model, names) if names else model)
        if names:
            own, other = next(iter(names.items()))
            told.append(
                f"{model.label}: {counted(len(names), 'tensor')} matched under other names, such as"
                f" {printable(own)} as {printable(other)}"
            )
    return tuple(result), told


def _renamed(own: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Which of a model's names stand for which of those that are wanted, where there is no doubt."""
    if own.keys() <= wanted.keys():
        return {}
    add, remove = _prefix(own, wanted), _prefix(wanted, own)
    names: dict[str, str] = {}
    for name in own:
        if name in wanted:
            continue
        other = name.removeprefix(remove) if remove and name.startswith(remove) else add + name
        matches = [n for n in (other, _norm(name), _norm(other)) if n in wanted and n not in own]
        if matches:
            names[name] = matches[0]
    return names if len({*names.values()}) == len(names) else {}


def _prefix(short: Collection[str], long: Collection[str]) -> str:
    """What the names of one model lack that those of another have; empty unless their layers agree on it.

    Every stack of layers of the one must be a stack of the other's under the same prefix, and none of
    them one as it is.
    """
    here, there = {*stacks(short)}, {*stacks(long)}
    prefixes = {stack.partition(".")[0] + "." for stack in there}
    fits = [p for p in prefixes if here and not here & there and {p + stack for stack in here} <= there]
    return fits[0] if len(fits) == 1 else ""


def _norm(name: str) -> str:
    """A layer norm's parameter by its other name; empty for other tensors."""
    match = _NORM.fullmatch(name)
    return match.group(1) + _OTHER[match.group(2).lower()] if match else ""
