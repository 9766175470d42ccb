"""Which models a merge came from: as told by the caller, checked against the merge's own manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.lora import open_model
from merge_models.merge.checkpoint.source import read_json
from merge_models.merge.checkpoint.staging import MANIFEST
from merge_models.merge.errors import MergeError, counted, printable

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Lineage:
    """A merge, its parents with their shares (which sum to 1), and the base."""

    merged: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    notes: tuple[str, ...] = ()


def short_name(model: Name) -> str:
    """The last part of a model's path or Hub id; of a model with an adapter, both."""
    parts = os.fspath(model).split("+")
    return "+".join(Path(part.rstrip("/")).name or part for part in parts)


def lineage(
    merged: Name,
    parents: Sequence[Name],
    base: Name | None,
    weights: Sequence[float] | None,
    *,
    allow_pickle: bool = False,
) -> Lineage:
    """Fills in from the merge's manifest what the caller leaves out.

    Raises:
        MergeError: no parents are told and there is no manifest, a parent is none of the recipe's, or the
            weights do not fit the parents.
    """
    open_model(os.fspath(merged), allow_pickle=allow_pickle).close()
    manifest = _manifest(merged)
    made_from = _models(manifest)
    told = tuple(os.fspath(parent) for parent in parents)
    if not told and not made_from:
        raise MergeError(f"{_show(merged)} has no {MANIFEST} that names its parents; pass --parents")
    if told and made_from:
        _check_parents(merged, told, [*made_from, *_base(manifest)])
    chosen = told or tuple(made_from)
    if base is None and not told:
        base = next(iter(_base(manifest)), None)
    shares, notes = _shares(chosen, made_from, manifest, weights)
    return Lineage(os.fspath(merged), chosen, shares, None if base is None else os.fspath(base), notes)


def _show(name: Name) -> str:
    return printable(os.fspath(name), 400)


def _manifest(merged: Name) -> Mapping[str, Any]:
    file = Path(merged) / MANIFEST
    return read_json(file) if file.is_file() else {}


def _inputs(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inputs = manifest.get("inputs")
    return [i for i in inputs if isinstance(i, dict)] if isinstance(inputs, list) else []


def _models(manifest: Mapping[str, Any]) -> list[str]:
    return _of_role(manifest, "parent")


def _base(manifest: Mapping[str, Any]) -> list[str]:
    return _of_role(manifest, "base")


def _of_role(manifest: Mapping[str, Any], role: str) -> list[str]:
    """Where the models of a role are: by their recorded places, whatever folder the caller is in."""
    return [_place(str(i.get("model")), manifest) for i in _inputs(manifest) if i.get("role") == role]


def _place(model: str, manifest: Mapping[str, Any]) -> str:
    models = manifest.get("models")
    described = models.get(model) if isinstance(models, dict) else None
    if not isinstance(described, dict):
        first, plus, second = _halves(model, models if isinstance(models, dict) else {})
        return f"{_place(first, manifest)}+{_place(second, manifest)}" if plus else model
    if isinstance(described.get("path"), str):
        return described["path"]
    repository, revision = described.get("repository"), described.get("revision")
    return f"{repository}@{revision}" if repository and revision else model


def _halves(model: str, known: Mapping[str, Any]) -> tuple[str, str, str]:
    """A model and its adapter, where both are known; else the model alone."""
    for cut in (at for at, letter in enumerate(model) if letter == "+"):
        if model[:cut] in known and model[cut + 1 :] in known:
            return model[:cut], "+", model[cut + 1 :]
    return model, "", ""


def _check_parents(merged: Name, told: Sequence[str], known: Sequence[str]) -> None:
    """A folder may have moved since: its last name decides."""
    names = {short_name(k) for k in known}
    for parent in told:
        if short_name(parent) not in names:
            raise MergeError(
                f"{_show(parent)} is not a parent of {_show(merged)}: its {MANIFEST} names"
                f" {', '.join(map(_show, known))}; evaluate against those"
            )


def _shares(
    parents: Sequence[str],
    made_from: Sequence[str],
    manifest: Mapping[str, Any],
    weights: Sequence[float] | None,
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    if weights is not None:
        if len(weights) != len(parents):
            raise MergeError(
                f"{counted(len(weights), 'weight')} for {counted(len(parents), 'parent')};"
                " give one per parent"
            )
        return _normalised(weights), ()
    of_recipe = recipe_weights(manifest.get("recipe")) or _repair_weights(manifest)
    if of_recipe is not None and len(of_recipe) == len(parents) == len(made_from):
        return _normalised(of_recipe), ()
    return _normalised([1.0] * len(parents)), ()


def _repair_weights(manifest: Mapping[str, Any]) -> list[float] | None:
    """The shares by which a repaired merge was given its parents' scales."""
    repair = manifest.get("repair")
    weights = repair.get("weights") if isinstance(repair, dict) else None
    if not isinstance(weights, list):
        return None
    known = [float(w) for w in weights if isinstance(w, (int, float)) and not isinstance(w, bool)]
    return known if len(known) == len(weights) else None


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    if not all(w >= 0 for w in weights) or not 0 < total < float("inf"):
        raise MergeError("parents' weights must be finite, none negative, and one positive")
    return tuple(w / total for w in weights)


def recipe_weights(recipe: Any) -> list[float] | None:
    """The models' weights of a recipe's document, where each is a plain positive number."""
    models = recipe.get("models") if isinstance(recipe, dict) else None
    found = []
    for entry in models if isinstance(models, list) else ():
        parameters = entry.get("parameters") if isinstance(entry, dict) else None
        weight = parameters.get("weight") if isinstance(parameters, dict) else None
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or weight <= 0:
            return None
        found.append(float(weight))
    return found or None
