"""How an evaluation or a repair is carried out: which text, on what, how much at a time, with which
numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from merge_models.evals.inputs.arguments import checked_count
from merge_models.evals.inputs.positions import LENGTH

Name = str | os.PathLike[str]


def silent(line: str) -> None:
    """Tells nobody that a step begins."""
    del line


@dataclass(frozen=True)
class Merged:
    """A merge of which more is known than its folder says, as of one that is not published yet.

    Attributes:
        place: folder or Hub id.
        name: what reports call it [default: its folder's name].
        origins: for each parent, and then the base, which of its tensors those of the merge came from, by
            name [default: the manifest's, where layers were put together anew; else those of the same name].

    >>> Merged("runs/merged", name="soup").name
    'soup'
    """

    place: Name
    name: str | None = None
    origins: Sequence[Mapping[str, str]] | None = None


@dataclass(frozen=True)
class TextSample:
    """The text that models are run on, and how much of it.

    Attributes:
        source: ``built-in``, or a ``.jsonl`` or text file.
        tokens: how many in all; ``length``: of a sequence, at most what the models take.

    Raises:
        MergeError: tokens or length are no whole numbers of 1 or more.

    >>> TextSample(tokens=4096).source
    'built-in'
    """

    source: Name = "built-in"
    tokens: int = 8192
    length: int = LENGTH

    def __post_init__(self) -> None:
        object.__setattr__(self, "tokens", checked_count(self.tokens, "tokens", 1))
        object.__setattr__(self, "length", checked_count(self.length, "length", 1))


@dataclass(frozen=True)
class Running:
    """What models are run on, and how.

    Attributes:
        seed: of samples, shuffles and bootstraps; equal seeds give equal numbers.
        device: where models run [default: CPU].
        threads: tensors whose weights are measured at the same time [default: one a core, at most 4].
        allow_pickle: read files of ``torch.save`` too; nothing of them is run.
        progress: is called with a line as each step begins.

    Raises:
        MergeError: the seed is no whole number of 0 or more.

    >>> Running(seed=1).device is None
    True
    """

    seed: int = 0
    device: str | None = None
    threads: int | None = None
    allow_pickle: bool = False
    progress: Callable[[str], None] = silent

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", checked_count(self.seed, "seed"))


USUAL_TEXT, USUAL_RUNNING = TextSample(), Running()
"""What is meant where nothing else is said."""
