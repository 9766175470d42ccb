"""Modules in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from merge_models.evals.measures.activations.modules import diagnose_modules
from merge_models.merge.errors import MergeError
from tests.evals.measures.activations.nets import llama, mlp, probed, ratio, text


def test_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    model[2].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    diagnose_modules(model, [model], batches=[torch.randn(20, 4)])
    assert [m.training for m in model.modules()] == [True, True, True, False]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    language_model = llama(0)
    broken = text(length=20)
    probed(language_model, [language_model], batches=broken)
    for module in [*model.modules(), *language_model.modules()]:
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_hooks_go_when_a_forward_pass_fails() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(9, 2))
    with pytest.raises(MergeError, match="does not run on a batch"):
        diagnose_modules(model, [model], batches=[torch.randn(20, 4)])
    assert not any(module._forward_hooks for module in model.modules())


def test_modules_with_logits_and_labels() -> None:
    one, two, x = mlp(0, 6, 20, 3), mlp(1, 6, 20, 3), torch.randn(80, 6)
    labels = one(x).argmax(-1)
    found = diagnose_modules(
        one, [one, two], batches=x.split(32), logits=lambda output: output, labels=labels.split(32)
    )
    assert found.head is not None and found.head.predictions == 80
    expected = nn.functional.cross_entropy(two(x).double(), labels).item()
    assert found.head.loss["parent 2"].value == pytest.approx(expected, rel=1e-5)
    assert found.head.divergences[0].kl.value == 0 < found.head.divergences[1].kl.value
    shares = np.bincount(labels) / 80
    assert found.calibration.unigram_entropy["batches"] == pytest.approx(-(shares * np.log(shares)).sum())


def test_bad_input_is_one_line() -> None:
    model = llama(0)
    small = llama(0, vocab_size=10)
    with pytest.raises(MergeError, match="its embedding has 10 rows"):
        probed(small, [small])
    short = llama(0, max_position_embeddings=8)
    with pytest.raises(MergeError, match="length=8 or less"):
        probed(short, [short])
    with pytest.raises(MergeError, match="at least one parent"):
        probed(model, [])
    with pytest.raises(MergeError, match="no layer of the same name"):
        probed(model, [llama(0, hidden_size=24)])
    with pytest.raises(MergeError, match="2 weights for 1 parent"):
        probed(model, [model], weights=[1, 1])
    with pytest.raises(MergeError, match="did you mean 'linear'"):
        holder = nn.ModuleDict({"linear": nn.Linear(2, 2)})
        diagnose_modules(holder, [holder], batches=[torch.ones(1, 2)], sites=["linaer"])
    with pytest.raises(MergeError, match="at least one batch"):
        diagnose_modules(model, [model], batches=[])


def test_weights_of_parents_count() -> None:
    one, two = mlp(1, 8, 30), mlp(2, 8, 30)
    with torch.no_grad():
        two[0].weight.mul_(3)
    x = torch.randn(200, 8)
    (site,) = diagnose_modules(one, [one, two], weights=[3, 1], batches=[x]).sites
    ours, theirs = (m(x).detach().double().numpy().var(0) for m in (one, two))
    assert ratio(site) == pytest.approx(np.median(ours / (0.75 * ours + 0.25 * theirs)))
