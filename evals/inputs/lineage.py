"""Which models a merge came from: as told by the caller, checked against the merge's own manifest."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.evals.inputs.arguments import checked_models, checked_place, checked_weights
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.places import local_path
from merge_models.merge.checkpoint.sources.lora import open_model
from merge_models.merge.errors import MergeError, counted, printable

Name = str | os.PathLike[str]


@dataclass(frozen=True)
class Lineage:
    """A merge, its parents with their shares (which sum to 1), and the base.

    Attributes:
        origins: for each parent, and then the base, which of its tensors those of the merge came from, by
            name; tensors that are left out came from elsewhere. None where names alone tell.
    """

    merged: str
    parents: tuple[str, ...]
    weights: tuple[float, ...]
    base: str | None
    notes: tuple[str, ...] = ()
    origins: tuple[Mapping[str, str], ...] | None = None


def short_name(model: Name) -> str:
    """Returns the last part of a model's path or Hub id; of a model with an adapter, both."""
    parts = os.fspath(model).split("+")
    return "+".join(Path(part.rstrip("/")).name or part for part in parts)


def unique_names(names: Sequence[str]) -> list[str]:
    """Returns the names with numbers behind repeated ones: ``a, a, b`` become ``a, a (2), b``."""
    taken: set[str] = set()
    out = []
    for name in names:
        n, candidate = 1, name
        while candidate in taken:
            n += 1
            candidate = f"{name} ({n})"
        taken.add(candidate)
        out.append(candidate)
    return out


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
    merged = checked_place(merged, "the merge")
    base = None if base is None else checked_place(base, "the base")
    weights = checked_weights(weights)
    told = tuple(checked_place(parent, "a parent") for parent in checked_models(parents))
    open_model(merged, allow_pickle=allow_pickle).close()
    manifest = _manifest(merged)
    made_from, bases = _of_role(manifest, "parent"), _of_role(manifest, "base")
    if not told and not made_from:
        raise MergeError(f"{_show(merged)} has no {MANIFEST} that names its parents; pass --parents")
    if told and made_from:
        _check_parents(merged, told, [known.place for known in (*made_from, *bases)])
    chosen = told or tuple(known.place for known in made_from)
    shares, notes = _shares(chosen, made_from, weights)
    if base is None and bases:
        base, missing = _recorded_base(bases[0].place, told)
        notes = (*notes, *missing)
    root = None if base is None else os.fspath(base)
    named = _origins([*chosen, *([root] if root else [])], (*made_from, *bases))
    return Lineage(os.fspath(merged), chosen, shares, root, notes, named)


def _show(name: Name) -> str:
    return printable(os.fspath(name), 400)


def _manifest(merged: Name) -> Mapping[str, Any]:
    file = local_path(merged) / MANIFEST
    return read_json(file) if file.is_file() else {}


def _inputs(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    inputs = manifest.get("inputs")
    return [i for i in inputs if isinstance(i, dict)] if isinstance(inputs, list) else []


@dataclass(frozen=True)
class _Recorded:
    """A model that a manifest names: where it is, its share, where it tells one, and what was taken of it,
    where layers were put together anew."""

    place: str
    share: float | None
    names: Mapping[str, str] | None


def _of_role(manifest: Mapping[str, Any], role: str) -> list[_Recorded]:
    """The models of a role: by their recorded places, whatever folder the caller is in."""
    output = manifest.get("output")
    taken = output.get("origins") if isinstance(output, dict) else None
    return [
        _Recorded(_place(str(i.get("model")), manifest), _share(i.get("share")), _names(taken, number))
        for number, i in enumerate(_inputs(manifest))
        if i.get("role") == role
    ]


def _names(taken: Any, number: int) -> Mapping[str, str] | None:
    names = taken[number] if isinstance(taken, list) and number < len(taken) else None
    fits = isinstance(names, dict) and all(isinstance(name, str) for name in names.values())
    return names if fits else None


def _origins(models: Sequence[str], recorded: Sequence[_Recorded]) -> tuple[Mapping[str, str], ...] | None:
    """What was taken of each model; None unless that is known of all."""
    names = [one.names for one in _recorded_as(models, recorded) if one is not None and one.names is not None]
    return tuple(names) if len(names) == len(models) else None


def _share(value: Any) -> float | None:
    is_share = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1
    return float(value) if is_share else None


def _recorded_base(place: str, told: Sequence[str]) -> tuple[str | None, tuple[str, ...]]:
    """The manifest's base, unless it is told to be a parent, or parents are told and it is gone.

    Returns:
        Where it is, and notes.
    """
    if short_name(place) in map(short_name, told):
        return None, ()
    if told and os.path.isabs(place) and not os.path.exists(place.split("+")[0]):
        return None, (
            f"the base is no longer at {_show(place)}: nothing is measured against it; pass --base",
        )
    return place, ()


def _place(model: str, manifest: Mapping[str, Any]) -> str:
    models = manifest.get("models")
    described = models.get(model) if isinstance(models, dict) else None
    if not isinstance(described, dict):
        first, plus, second = _halves(model, models if isinstance(models, dict) else {})
        return f"{_place(first, manifest)}+{_place(second, manifest)}" if plus else model
    if isinstance(described.get("path"), str):
        return described["path"]
    if "earlier_recipe" in described:
        return _made_before(model, manifest)
    repository, revision = described.get("repository"), described.get("revision")
    return f"{repository}@{revision}" if repository and revision else model


def _made_before(name: str, manifest: Mapping[str, Any]) -> str:
    """Where the result of an earlier recipe was when it was merged: the folder of its first weight file."""
    for given in _inputs(manifest):
        files = given.get("files")
        first = files[0] if isinstance(files, list) and files else None
        path = first.get("path") if isinstance(first, dict) else None
        if str(given.get("model")).partition("+")[0] == name and isinstance(path, str):
            return os.path.dirname(path)
    return name


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
    parents: Sequence[str], made_from: Sequence[_Recorded], weights: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The parents' shares, and a note where those that the merge was made with are not known."""
    if weights is not None:
        if len(weights) != len(parents):
            raise MergeError(
                f"{counted(len(weights), 'weight')} for {counted(len(parents), 'parent')};"
                " give one per parent"
            )
        return _normalised(weights), ()
    recorded = _matched(parents, made_from)
    if sum(recorded) > 0:
        return _normalised(recorded), ()
    notes = (_EQUAL,) if made_from and len(parents) > 1 else ()
    return _normalised([1.0] * len(parents)), notes


_EQUAL = (
    f"parents count equally: {MANIFEST} tells no shares of them (weights below zero, or a model that is not"
    " mixed in); pass --weights for others"
)


def _matched(parents: Sequence[str], made_from: Sequence[_Recorded]) -> list[float]:
    """The recorded share of each parent, by place or else by name; nothing unless there is one for each."""
    shares = [None if one is None else one.share for one in _recorded_as(parents, made_from)]
    known = [share for share in shares if share is not None]
    return known if len(known) == len(shares) else []


def _recorded_as(models: Sequence[str], recorded: Sequence[_Recorded]) -> list[_Recorded | None]:
    """What each model is recorded as, by place or else by name."""
    left, matched = list(recorded), []
    for model in models:
        same = [known for known in left if known.place == model]
        same += [known for known in left if short_name(known.place) == short_name(model)]
        if same:
            left.remove(same[0])
        matched.append(same[0] if same else None)
    return matched


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = math.fsum(weights)
    if not all(w >= 0 for w in weights) or not 0 < total < float("inf"):
        raise MergeError("parents' weights must be finite, none negative, and one positive")
    return tuple(w / total for w in weights)
