"""How a model is run on token ids, and what is kept of its output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from merge_models.evals.measures.activations.head import (
    Positions,
    Predictions,
    StoredLogits,
    body_of,
    hidden_of,
    linear_head,
)
from merge_models.evals.measures.activations.store import Store


class Keeper:
    """Runs a module on ids and keeps nothing of its output."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def take(self, start: int, ids: Tensor) -> None:
        """Runs sequences ``start`` and following, [sequences, length]."""
        del start
        self.model(ids)

    def predictions(self) -> Predictions | None:
        """Returns what its predictions can be made from, where it makes any."""
        return None

    def vectors(self) -> Tensor | None:
        """Returns a vector for each sequence, where it is an encoder."""
        return None


class SentenceKeeper(Keeper):
    """Runs an encoder; keeps the mean of each sequence's last hidden states, the first token's left out."""

    def __init__(self, model: Any, sequences: int) -> None:
        super().__init__(model)
        self._kept: list[Tensor] = []

    def take(self, start: int, ids: Tensor) -> None:
        hidden = self.model(input_ids=ids).last_hidden_state
        self._kept.append(hidden[:, 1:].double().mean(1).cpu())

    def vectors(self) -> Tensor | None:
        return torch.cat(self._kept)


class HiddenKeeper(Keeper):
    """Runs a causal model without its head; keeps what goes into it, at the compared positions."""

    def __init__(
        self, model: Any, form: tuple[float, float | None], positions: Positions, store: Store
    ) -> None:
        super().__init__(model)
        self._form, self._positions, self._store = form, positions, store
        self._kept: list[Tensor] = []

    def take(self, start: int, ids: Tensor) -> None:
        hidden = hidden_of(body_of(self.model), ids)
        within = self._positions.within(start, start + len(ids))
        rows = torch.from_numpy(self._positions.rows[within] - start)
        columns = torch.from_numpy(self._positions.columns[within])
        self._kept.append(hidden[rows, columns].to("cpu", torch.float32))

    def predictions(self) -> Predictions | None:
        return linear_head(self.model, torch.cat(self._kept), self._store, self._form)


class LogitsKeeper(Keeper):
    """Runs a causal model whose head is not known; keeps its logits at the compared positions."""

    def __init__(self, model: Any, positions: Positions, store: Store, vocabulary: int) -> None:
        super().__init__(model)
        self._positions, self._store = positions, store
        self._kept = store.allocate(len(positions), vocabulary)

    def take(self, start: int, ids: Tensor) -> None:
        logits = self.model(input_ids=ids, use_cache=False).logits
        within = self._positions.within(start, start + len(ids))
        rows = torch.from_numpy(self._positions.rows[within] - start)
        columns = torch.from_numpy(self._positions.columns[within])
        self._store.write(self._kept, within.start, logits[rows, columns].float().cpu().numpy())

    def predictions(self) -> Predictions | None:
        return StoredLogits(self._store, self._kept)
