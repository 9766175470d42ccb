"""The head: what each model predicts, compared without keeping tokens x vocabulary numbers.

Kept are the vectors that go into the head (tokens x width) and the head's matrix; logits are made again, for
all models together and a few tokens at a time. A head that is more than a matrix, a bias, a factor and a soft
cap is recognised by trying: then the logits of as many tokens as fit are kept themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from merge_models.evals.measures.activations.sampling import kept_positions
from merge_models.evals.measures.activations.store import Region, Store
from merge_models.merge.errors import MergeError

_STORED_BYTES = 256 << 20
_SLICE = 8192
_TRIED = 16


class Predictions(Protocol):
    """One model's logits at the compared positions, made or read."""

    @property
    def vocabulary(self) -> int: ...

    def logits(self, start: int, stop: int) -> Tensor:
        """Returns logits of positions ``start`` to ``stop``, [positions, vocabulary], float32."""
        ...


@dataclass(frozen=True)
class LinearHead:
    """``cap * tanh(scale * (W h + b) / cap)``, from the kept ``h`` and ``W``; a slice of rows at a time."""

    hidden: Tensor
    store: Store
    weight: Region
    bias: Tensor | None
    scale: float
    cap: float | None

    @property
    def vocabulary(self) -> int:
        return self.weight.rows

    def logits(self, start: int, stop: int) -> Tensor:
        hidden = self.hidden[start:stop]
        out = torch.empty(len(hidden), self.vocabulary)
        for low in range(0, self.vocabulary, _SLICE):
            high = min(low + _SLICE, self.vocabulary)
            raw = torch.from_numpy(self.store.read(self.weight, low, high))
            rows = raw.view(torch.bfloat16).float() if raw.dtype == torch.int16 else raw
            out[:, low:high] = hidden @ rows.T
        return shaped(out if self.bias is None else out.add_(self.bias), self.scale, self.cap)


@dataclass(frozen=True)
class StoredLogits:
    """Logits as the model gave them."""

    store: Store
    kept: Region

    @property
    def vocabulary(self) -> int:
        return self.kept.columns

    def logits(self, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.store.read(self.kept, start, stop))


@dataclass(frozen=True)
class Positions:
    """Which predictions are compared.

    The first token's is left out, as everywhere, and the last one's, which nothing follows.

    Attributes:
        rows, columns: places in the ids, in order of ``rows``; ``labels``: the tokens that follow, or None.
        domains: each one's domain.
    """

    rows: np.ndarray
    columns: np.ndarray
    labels: np.ndarray | None
    domains: tuple[str, ...]

    @classmethod
    def of(cls, ids: np.ndarray, domains: Sequence[str], wanted: int, seed: int) -> Positions:
        """Returns equally many positions of each sequence, about ``wanted`` in all (at least one a
        sequence)."""
        sequences, length = ids.shape
        if length < 3:
            raise MergeError(f"sequences of {length} tokens are too short to measure; take 16 or more")
        each = max(1, min(length - 2, wanted // sequences))
        places = [1 + kept_positions(seed, s, length - 2, each) for s in range(sequences)]
        rows, columns = np.repeat(np.arange(sequences), each), np.concatenate(places)
        return cls(rows, columns, ids[rows, columns + 1], tuple(str(domains[row]) for row in rows))

    def within(self, start: int, stop: int) -> slice:
        """Returns which of them lie in sequences ``start`` to ``stop``."""
        first, last = np.searchsorted(self.rows, [start, stop])
        return slice(int(first), int(last))

    def __len__(self) -> int:
        return len(self.rows)


def body_of(model: Any) -> nn.Module | None:
    """Returns the part of a causal model that ends in the vectors that its head takes."""
    body = getattr(model, "base_model", None)
    head = model.get_output_embeddings()
    return body if isinstance(body, nn.Module) and body is not model and head is not None else None


def shaped(logits: Tensor, scale: float, cap: float | None) -> Tensor:
    """Returns logits as models shape them after the matrix."""
    if scale != 1:
        logits = logits * scale
    return logits if cap is None else cap * torch.tanh(logits / cap)


@torch.inference_mode()
def head_form(model: Any, ids: Tensor) -> tuple[float, float | None] | None:
    """Returns the factor and soft cap with which the head's matrix gives this model's logits; None where
    nothing
    does.

    Tried on the first tokens: the candidates are the values in the model's config.
    """
    body, some = body_of(model), ids[:1, :_TRIED]
    if body is None:
        return None
    wanted = model(input_ids=some, use_cache=False).logits.float()
    linear = model.get_output_embeddings()(hidden_of(body, some)).float()
    config = model.config.get_text_config()
    scales = [1.0, *(v for k in ("logit_scale", "lm_head_multiplier") if (v := getattr(config, k, None)))]
    scales += [1 / v for v in [getattr(config, "logits_scaling", None)] if v]
    for scale in scales:
        for cap in (None, getattr(config, "final_logit_softcapping", None)):
            head = shaped(linear, scale, cap)
            if head.shape == wanted.shape and torch.allclose(head, wanted, 1e-4, 1e-4, equal_nan=True):
                return scale, cap
    return None


def hidden_of(body: Any, ids: Tensor) -> Tensor:
    """Returns the last hidden states of some sequences, [sequences, tokens, width]."""
    return body(input_ids=ids, use_cache=False).last_hidden_state


def linear_head(model: Any, hidden: Tensor, store: Store, form: tuple[float, float | None]) -> LinearHead:
    """Keeps a head's matrix, in bfloat16 where that loses nothing."""
    head = model.get_output_embeddings()
    weight = head.weight.detach().to("cpu", torch.float32)
    short = weight.bfloat16()
    exact = torch.equal(short.float(), weight)
    region = store.allocate(*weight.shape, dtype="int16" if exact else "float32")
    for low in range(0, len(weight), _SLICE):
        rows = short[low : low + _SLICE].view(torch.int16) if exact else weight[low : low + _SLICE]
        store.write(region, low, rows.numpy())
    bias = getattr(head, "bias", None)
    kept = None if bias is None else bias.detach().to("cpu", torch.float32).clone()
    return LinearHead(hidden, store, region, kept, *form)


def stored_positions(
    ids: np.ndarray, domains: Sequence[str], wanted: int, vocabulary: int, seed: int
) -> Positions:
    """Returns the positions whose logits may be kept themselves, where the head's form is not known."""
    return Positions.of(ids, domains, min(wanted, _STORED_BYTES // (4 * vocabulary)), seed)
