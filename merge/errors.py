"""The one exception family: what the user knows, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MergeError(Exception):
    """Base of everything that a caller's input can cause. The text is one line and names the fix.

    >>> from merge_models.merge import MergeError, soup
    >>> try:
    ...     soup([])
    ... except MergeError as error:
    ...     print(error)
    there are no models to merge
    """


class CheckpointError(MergeError):
    """A file or folder cannot be read as a checkpoint, or cannot be written.

    >>> from merge_models.merge import CheckpointError, merge
    >>> try:
    ...     merge(["runs/a", "runs/none"], out="runs/merged")
    ... except CheckpointError as error:
    ...     print(error)
    runs/none: ...
    """


class ChangedError(CheckpointError):
    """An input changed while it was read: what was made of it so far is of no use.

    >>> from merge_models.merge import ChangedError, CheckpointError
    >>> issubclass(ChangedError, CheckpointError)
    True
    """


class RecipeError(MergeError):
    """A recipe, strategy name or parameter is not valid.

    >>> from merge_models.merge import RecipeError, run_recipe
    >>> try:
    ...     run_recipe({"merge_method": "linaer", "models": [{"model": "runs/a"}]}, "runs/merged")
    ... except RecipeError as error:
    ...     print(error)
    unknown merge method 'linaer'; did you mean 'linear'?
    """


class PlanError(MergeError):
    """The parents do not fit each other, the strategy or the machine.

    >>> import torch
    >>> from merge_models.merge import PlanError, soup
    >>> try:
    ...     soup([{"w": torch.zeros(2)}, {"w": torch.zeros(3)}])
    ... except PlanError as error:
    ...     print(error)
    tensor 'w' ...
    """


class MissingRoleError(PlanError):
    """A strategy asks for inputs of a role that nothing has."""

    def __init__(self, role: str) -> None:
        super().__init__(
            f"no input has the role '{printable(role)}'; name inputs of that role, or another method"
        )
        self.role = role


class NonFiniteError(MergeError):
    """A parent holds NaN or Inf, or a result does not fit the output dtype.

    >>> import torch
    >>> from merge_models.merge import NonFiniteError, soup
    >>> try:
    ...     soup([{"w": torch.zeros(2)}, {"w": torch.tensor([0.0, torch.nan])}])
    ... except NonFiniteError as error:
    ...     print(error)
    model 1: tensor 'w' holds NaN or Inf; ...
    """


def printable(text: str, limit: int = 120) -> str:
    """Returns text from a file or a user, safe to show: no control characters, one line, bounded length."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text[: limit + 1])
    return shown if len(text) <= limit else shown[:limit] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the nearest known word, else the known ones."""
    names = sorted(set(known))
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(names)}" if names else ""


def counted(number: int, thing: str) -> str:
    """Returns ``1 model``, ``2 models``."""
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
