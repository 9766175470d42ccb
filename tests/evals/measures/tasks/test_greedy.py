"""Greedy continuations."""

from __future__ import annotations

import torch
from torch import nn

from merge_models.evals.measures.tasks.greedy import continuations
from tests.evals.measures.tasks.models import VOCABULARY, Broken, Model


def test_greedy_goes_on_until_a_stop() -> None:
    class Counter(Model):
        def logits(self, ids: torch.Tensor) -> torch.Tensor:
            return 9.0 * nn.functional.one_hot((ids + 1) % VOCABULARY, VOCABULARY).float()

    prompts = [[1, 2], [5], [40, 41], [48]]
    assert continuations(Counter(), prompts, 3, {9}) == [[3, 4, 5], [6, 7, 8], [42, 43, 44], [49, 0, 1]]
    assert continuations(Counter(), prompts, 3, {4, 7}) == [[3, 4], [6, 7], [42, 43, 44], [49, 0, 1]]
    assert continuations(Broken(), prompts, 3, set()) == [[], [], [], []]
