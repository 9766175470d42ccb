"""Encoders: how far the merge's sentence vectors are from the other models'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from merge_models.evals.diagnostics.registry import at
from merge_models.evals.measures.activations.predictions import estimate_of
from merge_models.evals.measures.activations.sampling import group_of
from merge_models.evals.schema import ModelRef, SentenceDrift


def compare_sentences(
    vectors: Mapping[str, Tensor], refs: Sequence[ModelRef], drawn: np.ndarray
) -> tuple[SentenceDrift, ...]:
    """Compares the merge with every other model.

    Args:
        vectors: by model, [sentences, width]: the mean of the last hidden states of a sequence's tokens.
        refs: merge, parents, base.
        drawn: the bootstrap's draws of groups of sentences.
    """
    units = {name: normalize(v.double(), dim=1) for name, v in vectors.items() if torch.isfinite(v).all()}
    merge = next((ref for ref in refs if ref.role == "merge" and ref.name in units), None)
    if merge is None:
        return ()
    merged = units[merge.name]
    group = group_of(len(merged))
    return tuple(
        SentenceDrift(
            model=ref.name,
            **{
                one.key: estimate_of(one.measure(merged, units[ref.name]).numpy(), group, drawn)
                for one in at("sentence")
            },
        )
        for ref in refs
        if ref.role != "merge" and ref.name in units
    )
