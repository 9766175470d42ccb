"""What runs over the models of an evaluation, one model in memory at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from merge_models.evals.schema import Calibration, ModelRef

if TYPE_CHECKING:
    from torch import Tensor, nn


class Probe(Protocol):
    """Something that looks at each model once, and reports at the end.

    The loop is ``for ref in (*parents, base, merge): with open_model(...) as (model, tokenizer, kind): ...``;
    a probe keeps what it needs of a model, never the model. After the last one, its ``finish`` makes the
    diagnosis.
    """

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Looks at one model, which is in eval mode and is left as it was: no hooks, no gradients."""
        ...


@dataclass(frozen=True, eq=False)
class Batches:
    """Calibration text as token ids, the same for every model.

    Attributes:
        ids: [sequences, length], int64.
        domains: each sequence's domain.
        calibration: the record of where they come from.
    """

    ids: Tensor
    domains: tuple[str, ...]
    calibration: Calibration

    def __len__(self) -> int:
        return len(self.domains)

    def chunks(self, sequences: int) -> Iterator[tuple[slice, Tensor]]:
        """Runs of at most ``sequences`` sequences, with their place."""
        for start in range(0, len(self), sequences):
            place = slice(start, min(start + sequences, len(self)))
            yield place, self.ids[place]
