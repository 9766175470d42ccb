"""What runs over the models of an evaluation, one model in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from merge_models.evals.schema import ModelRef

if TYPE_CHECKING:
    from torch import nn


class Probe(Protocol):
    """Something that looks at each model once, and reports at the end.

    The loop is ``for ref in (*parents, base, merge): with open_model(...) as (model, tokenizer, kind): ...``;
    a probe keeps what it needs of a model, never the model. After the last one, its ``finish`` makes the
    diagnosis.
    """

    def observe(self, ref: ModelRef, model: nn.Module, tokenizer: Any | None) -> None:
        """Looks at one model, which is in eval mode and is left as it was: no hooks, no gradients."""
        ...
