"""The config of a model with other layers: how many each stack has, and every list that speaks of layers.

A model may have several stacks (text and vision, encoder and decoder), whose layers a config counts in
sections (``vision_config``) or under keys (``decoder_layers``) of their own. Which is whose is told by names,
and held against the number of layers that the stack has; where that leaves a doubt, no config is written.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from merge_models.merge.checkpoint import layer_indices
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.errors import PlanError

_COUNT = re.compile(r"^(?:(?:num|n)_)?(?:(?P<of>hidden|encoder|decoder)_)?(?:layers?|blocks?)$|^depth$")
_SECTION = re.compile(r"_(config|cfg)$")
_TEXT = ("text", "language", "llm", "lm")
_KINDS = (_TEXT, ("vision", "visual", "image", "vit", "vpm"), ("audio", "speech"))
_LAYERS = re.compile(r"(^|[._])(h|layers?|blocks?|resblocks)\.$")
"""Prefixes of what may have a count in a config; numbered parts of a projector have none."""
_NO_LAYERS = re.compile(r"^architectures$|token|_ids$|indexes$|indices$")
"""Lists that have something else than one entry a layer, whatever their length."""


@dataclass(frozen=True)
class Stack:
    """The layers of the output that stand under one prefix.

    Attributes:
        prefix: what their names begin with, such as ``model.layers.``.
        origins: for each, (model index, layer) that it starts from.
    """

    prefix: str
    origins: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class _Spot:
    """Where a config counts layers: the keys to a section, and one key in it."""

    path: tuple[str, ...]
    key: str


def stacked_config(
    configs: Sequence[Mapping[str, Any]], donor: int, counts: Mapping[str, int], stacks: Sequence[Stack]
) -> dict[str, Any]:
    """Returns the donor's config for an output with other layers.

    Args:
        configs: every model's config.
        donor: index of the model that gives the output's.
        counts: the donor's stacks by prefix, and how many layers each has.
        stacks: the output's that have other layers.

    Raises:
        PlanError: it cannot be told where the config counts a stack's layers.
    """
    config = configs[donor]
    result = copy.deepcopy(dict(config))
    owners = {prefix: _spots(config, prefix, n) for prefix, n in counts.items() if _LAYERS.search(prefix)}
    owners |= {s.prefix: _spots(config, s.prefix, counts.get(s.prefix, 0)) for s in stacks}
    for stack in stacks:
        spots = owners[stack.prefix]
        shared = [prefix for prefix, own in owners.items() if prefix != stack.prefix and {*own} & {*spots}]
        if shared or not spots:
            _refuse_unless_alike(stack, counts.get(stack.prefix), shared)
        for spot in spots:
            _section(result, spot.path)[spot.key] = len(stack.origins)
        for path in dict.fromkeys(spot.path for spot in spots):
            side = _side(stack.prefix) if any(_counts_of(_section(config, path)).values()) else None
            _restack(_section(result, path), configs, path, stack, counts[stack.prefix], side)
    return result


def layer_counts(config: Mapping[str, Any]) -> set[int]:
    """Returns every number of layers that a config gives, whichever stack it is of."""
    sections = [_section(config, path) for path in _paths(config)]
    return {section[key] for section in sections for key in _counts_of(section)}


def _refuse_unless_alike(stack: Stack, count: int | None, shared: Sequence[str]) -> None:
    """Nothing need be known of a config where a stack keeps all of its layers in their places."""
    if [layer for _, layer in stack.origins] == list(range(count or 0)):
        return
    name = printable(stack.prefix)
    if shared:
        problem = f"counts the layers of '{name}' and '{printable(shared[0])}' as one"
        fix = "give each a count of its own (such as encoder_layers and decoder_layers)"
    else:
        problem = f"does not say that there are {count or 'no'} layers in '{name}'"
        fix = "give it their number (such as num_hidden_layers), in the module's section where it has several"
    raise PlanError(f"slices: the config.json of the output's donor {problem}; {fix}")


def _spots(config: Mapping[str, Any], prefix: str, count: int) -> tuple[_Spot, ...]:
    """Where a config counts a stack's layers: the keys of its section that have this count."""
    scored = [(score, path) for path in _paths(config) if (score := _score(path, prefix)) is not None]
    best = max((score for score, _ in scored), default=0)
    spots = [_Spot(p, k) for n, p in scored if n == best for k in _counting(_section(config, p), prefix)]
    return tuple(spot for spot in spots if _section(config, spot.path)[spot.key] == count)


def _paths(config: Mapping[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The config and its sections, by the keys that lead there."""
    inner = [(key, value) for key, value in config.items() if isinstance(value, Mapping) and len(path) < 3]
    return [path, *(found for key, value in inner for found in _paths(value, (*path, key)))]


def _section(config: Any, path: Sequence[str]) -> Any:
    for key in path:
        config = config.get(key, {}) if isinstance(config, Mapping) else {}
    return config if isinstance(config, Mapping) else {}


def _score(path: Sequence[str], prefix: str) -> int | None:
    """How well a section's name fits a prefix; None where it is another module's.

    The config itself, and what it has on text, fit where nothing fits better.
    """
    words = {word for part in prefix.lower().split(".") for word in (part, *part.split("_"))}
    total = 1 if not path and words & {*_TEXT} else 0
    for key in path:
        stem = _SECTION.sub("", key.lower())
        kind = next((kind for kind in _KINDS if stem in kind), (stem,))
        if words & {*kind}:
            total += 1
        elif kind is not _TEXT:
            return None
    return total


def _side(prefix: str) -> str | None:
    """``encoder`` or ``decoder``, where a prefix says so."""
    words = re.findall(r"encoder|decoder", prefix.lower())
    return words[-1] if words else None


def _counting(section: Mapping[str, Any], prefix: str) -> list[str]:
    """The keys of a section that count a stack's layers.

    One that names a side is that side's alone. The others are everybody's, but the encoder's where the
    decoder has its own, as in T5 (``num_layers`` and ``num_decoder_layers``) and BART.
    """
    side, counts = _side(prefix), _counts_of(section)
    anyone = [key for key, of in counts.items() if of is None]
    own = [key for key, of in counts.items() if of is not None and of == side]
    if side == "decoder" and own:
        return own
    return [*own, *anyone] or (list(counts) if side is None else [])


def _counts_of(section: Mapping[str, Any]) -> dict[str, str | None]:
    """The keys of a section that count layers, and the side that each of them names."""
    counted = {key: match.group("of") for key in section if (match := _COUNT.match(key))}
    sides = {key: None if of == "hidden" else of for key, of in counted.items()}
    return {key: of for key, of in sides.items() if type(section[key]) is int}


def _restack(
    section: Any,
    configs: Sequence[Mapping[str, Any]],
    path: Sequence[str],
    stack: Stack,
    count: int,
    side: str | None,
) -> None:
    """Gives lists with one entry a layer those of the layers that are there now, and those with numbers of
    layers the numbers that these have now."""

    models = {model: _section(configs[model], path) for model, _ in stack.origins}
    for key, value in section.items():
        if side is not None and side not in key:
            continue
        own = {model: values.get(key) for model, values in models.items()}
        if key in layer_indices.NAMES:
            section[key] = layer_indices.renumbered(key, own, stack.origins, value, count)
        elif isinstance(value, list) and len(value) == count and not _NO_LAYERS.search(key):
            section[key] = [_entry(own[model], layer, value) for model, layer in stack.origins]


def _entry(own: Any, layer: int, fallback: Sequence[Any]) -> Any:
    if isinstance(own, list) and layer < len(own):
        return own[layer]
    return fallback[layer % len(fallback)]
