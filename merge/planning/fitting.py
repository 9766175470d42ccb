"""Whether the output's tensors fit the config that it gets: what does not fit does not load."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.layers import place_of, stacks
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.sources.tied import EMBEDDINGS, HEADS, find_tensor
from merge_models.merge.checkpoint.stacked import layer_counts
from merge_models.merge.errors import PlanError

Shape = tuple[int, ...]
_TABLES = tuple(f".{name}" for name in (*EMBEDDINGS, *HEADS))
_UNION = "add 'tokenizer: {source: union}' to the recipe"


@dataclass(frozen=True)
class Made:
    """An output tensor: its name and shape, and the model that its first parent is of."""

    name: str
    shape: Shape
    model: int


@dataclass(frozen=True)
class _Misfit:
    """An output tensor that has another shape in the donor."""

    made: Made
    theirs: Shape

    @property
    def rows(self) -> tuple[int, int] | None:
        """Rows here and there, where nothing else differs."""
        same = self.made.shape[:1] and self.made.shape[1:] == self.theirs[1:]
        return (self.made.shape[0], self.theirs[0]) if same and self.theirs else None

    @property
    def is_table(self) -> bool:
        return f".{self.made.name}".endswith(_TABLES)


def fitting_donor(
    models: Sequence[Source], donor: int, output: Sequence[Made], stacked: Collection[str]
) -> tuple[int, str]:
    """Returns the model whose config and tokenizer the output gets.

    It is the donor that the recipe names, unless the output has another vocabulary: then the first of the
    models that the tensors come from which has that vocabulary throughout.

    Args:
        models: the models of the merge.
        donor: index of the one that should give them.
        output: the output's tensors.
        stacked: prefixes of layers that stand in another order than in the donor.

    Returns:
        Its index, and a remark where it is another than ``donor``.

    Raises:
        PlanError: the output would not load with any of their configs.
    """
    if not models[donor].config:
        return donor, ""
    wrong = _misfits(models, donor, output, stacked)
    if not wrong:
        _check_layers(models[donor], output, stacked)
        return donor, ""
    tables = [misfit for misfit in wrong if misfit.is_table]
    rows = {misfit.rows for misfit in wrong}
    if not tables or None in rows or len(rows) > 1:
        raise PlanError(_refusal(models, donor, wrong, output))
    for other in dict.fromkeys(made.model for made in output if f".{made.name}".endswith(_TABLES)):
        if models[other].config and not _misfits(models, other, output, stacked):
            here, there = tables[0].rows or (0, 0)
            return other, (
                f"config and tokenizer are of {models[other].label}: the merged vocabulary has {here} rows,"
                f" that of {models[donor].label} {there}"
            )
    raise PlanError(_refusal(models, donor, wrong, output))


def _misfits(
    models: Sequence[Source], donor: int, output: Sequence[Made], stacked: Collection[str]
) -> list[_Misfit]:
    known: dict[tuple[str, str], set[Shape]] = defaultdict(set)
    for name, info in models[donor].tensors.items() if stacked else ():
        known[_layerless(name)].add(info.shape)
    fitting = []
    for made in output:
        if place_of(made.name).prefix in stacked:
            shapes = known[_layerless(made.name)]  # more than one: sizes go by layer, as config lists may
            theirs = next(iter(shapes)) if len(shapes) == 1 else made.shape
        else:
            info = find_tensor(models[donor], made.name)
            theirs = made.shape if info is None else info.shape
        if theirs != made.shape:
            fitting.append(_Misfit(made, theirs))
    return fitting


def _layerless(name: str) -> tuple[str, str]:
    place = place_of(name)
    return place.prefix, place.rest


def _refusal(models: Sequence[Source], donor: int, wrong: Sequence[_Misfit], output: Sequence[Made]) -> str:
    first = wrong[0]
    name, rows, whose = printable(first.made.name), first.made.shape[:1], models[first.made.model].label
    tables = [made for made in output if f".{made.name}".endswith(_TABLES)]
    other = next((made for made in tables if made.shape[:1] != rows), None)
    if first.is_table and first.rows and other:
        return (
            f"vocabularies differ: '{name}' has {rows[0]} rows (from {whose}) but '{printable(other.name)}'"
            f" {other.shape[0]} (from {models[other.model].label}), which no config allows; {_UNION}"
        )
    fix = "merge models of one size"
    if first.is_table and first.rows:
        fix = _UNION
    elif all(made.model != donor for made in output):
        fix = f"give a base_model of the size of {whose}, or none"
    return (
        f"tensor '{name}' is {list(first.made.shape)} (from {whose}) but {list(first.theirs)} in"
        f" {models[donor].label}, which gives the config: the result would not load; {fix}"
    )


def _check_layers(donor: Source, output: Sequence[Made], stacked: Collection[str]) -> None:
    """Checks that there are as many layers as the donor's config says."""
    theirs, counts = stacks(donor.tensors), layer_counts(donor.config)
    for prefix, count in stacks(made.name for made in output).items():
        own = theirs.get(prefix, count)
        if prefix not in stacked and own != count and own in counts and count not in counts:
            raise PlanError(
                f"{donor.label}: gives the config, and has {own} layers in '{printable(prefix)}', but the"
                f" output has {count}: it would not load; give a base_model of {count} layers, or none"
            )
