"""Activations: known answers, float64 references, and what must not matter."""

from __future__ import annotations

import copy
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merge_models.evals.measures.activations import probe
from merge_models.evals.measures.activations.modules import diagnose_modules
from merge_models.evals.measures.activations.probe import ActivationProbe
from merge_models.evals.schema import ActivationDiagnosis, ModelRef
from tests.evals.measures.activations.nets import bert, kernel_cka, llama, mlp, probed, ratio, text


def white_inputs(count: int, width: int, seed: int = 0) -> Tensor:
    """[count, width] with mean 0 and covariance I, exactly."""
    x = np.random.default_rng(seed).standard_normal((count, width))
    x -= x.mean(0)
    return torch.from_numpy(np.linalg.svd(x, full_matrices=False)[0] * np.sqrt(count)).float()


def mean_of(*models: nn.Module) -> Any:
    """Their soup."""
    merged = copy.deepcopy(models[0])
    states = [m.state_dict() for m in models]
    merged.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    return merged


@pytest.mark.parametrize("rho", [-0.5, 0.0, 0.4, 1.0])
def test_aligned_units_of_correlation_rho_keep_half_of_one_plus_rho(rho: float) -> None:
    """Var((X1 + X2) / 2) = sigma^2 (1 + rho) / 2 for units of equal variance (Jordan et al. 2023)."""
    x = white_inputs(400, 32)
    one, two = nn.Linear(32, 16, bias=False), nn.Linear(32, 16, bias=False)
    basis = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))[0].float()
    with torch.no_grad():
        one.weight.copy_(basis[:16])
        two.weight.copy_(rho * basis[:16] + (1 - rho**2) ** 0.5 * basis[16:])
    (site,) = diagnose_modules(mean_of(one, two), [one, two], batches=[x]).sites
    assert ratio(site) == pytest.approx((1 + rho) / 2, rel=1e-5)
    assert site.variance_ratio_p5 == pytest.approx((1 + rho) / 2, rel=1e-5)


def test_a_rank_one_bottleneck_has_effective_rank_one() -> None:
    narrow = nn.Sequential(nn.Linear(8, 1), nn.Linear(1, 32))
    sites = diagnose_modules(narrow, [narrow], batches=[torch.randn(300, 8)]).sites
    for statistics in (sites[1].merge, sites[1].parents[0]):
        assert statistics.effective_rank == pytest.approx(1, abs=1e-3)
        assert statistics.participation_ratio == pytest.approx(1, abs=1e-9)


def test_the_soup_with_a_permuted_copy_collapses_where_units_do_not_match() -> None:
    one = mlp(0, 16, 256, 256, 10)
    two = copy.deepcopy(one)
    order = torch.randperm(256)
    with torch.no_grad():
        two[0].weight.copy_(one[0].weight[order])
        two[0].bias.copy_(one[0].bias[order])
        two[2].weight.copy_(one[2].weight[:, order])
    x = torch.randn(500, 16)
    torch.testing.assert_close(one(x), two(x))
    found = diagnose_modules(mean_of(one, two), [one, two], batches=[x])
    first, _, second, _, last = found.sites
    assert (first.module, second.module, last.module) == ("0", "2", "4")
    assert ratio(first) < 0.65 and ratio(second) < 0.5 and ratio(last) < 0.5
    healthy = diagnose_modules(mean_of(one, one), [one, one], batches=[x])
    assert all(ratio(site) == 1 for site in healthy.sites)


def test_identical_models_show_nothing() -> None:
    model = llama(0)
    found = probed(model, [model, model], model)
    for site in found.sites:
        assert ratio(site) == 1 and site.variance_ratio_p5 == 1
        assert site.effective_rank_ratio is not None and site.effective_rank_ratio.value == pytest.approx(1)
        assert site.cka == pytest.approx((1, 1)) and site.drift == (0, 0)
    assert found.head is not None and len(found.head.divergences) == 3
    for divergence in found.head.divergences:
        assert (divergence.kl.value, divergence.js.value, divergence.fisher_rao.value) == (0, 0, 0)
        assert divergence.top1_agreement.value == 1
    assert found.head.parents_js == 0


def test_statistics_equal_numpys() -> None:
    """All tokens are kept here, so every number is that of the whole data."""
    model, other = mlp(1, 8, 40, 6), mlp(2, 8, 40, 6)
    x = torch.randn(150, 8)
    found = diagnose_modules(model, [other], batches=[x[:70], x[70:]], sites=["0", "2"])
    near = functools.partial(pytest.approx, rel=1e-5)
    for site in found.sites:
        depth = int(site.module) + 1
        ours, theirs = (m[:depth](x).detach().double().numpy() for m in (model, other))
        centred = ours - ours.mean(0)
        sigma = np.linalg.svd(centred)[1]
        p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
        p, q = p[p > 1e-9], q[q > 1e-18]
        merged = site.merge
        assert merged.variance == near(ours.var(0).mean())
        assert merged.effective_rank == near(np.exp(-(p * np.log(p)).sum()))
        assert merged.effective_rank_variance == near(np.exp(-(q * np.log(q)).sum()))
        assert merged.participation_ratio == near(1 / (q**2).sum())
        assert merged.stable_rank == near(1 / q.max())
        units = ours / np.linalg.norm(ours, axis=1, keepdims=True)
        cosines = units @ units.T
        assert merged.mean_cosine == near(cosines[~np.eye(150, dtype=bool)].mean())
        ratios = ours.var(0) / theirs.var(0)
        assert ratio(site) == near(np.median(ratios))
        assert site.variance_ratio_p5 == near(np.quantile(ratios, 0.05))
        drift = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
        assert site.drift == (near(drift.mean()),)
        assert site.cka == (near(kernel_cka(ours, theirs)),)


def test_massive_units_are_left_out_and_told() -> None:
    class Shifted(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(input)
            return torch.cat([out[:, :3], 5000 + 100 * out[:, 3:4], out[:, 4:]], 1)

    torch.manual_seed(0)
    one, two = Shifted(8, 12), Shifted(8, 12)
    merged = mean_of(one, two)
    (site,) = diagnose_modules(merged, [one, two], batches=[torch.randn(300, 8)]).sites
    assert site.merge.massive_units == site.parents[0].massive_units == (3,)
    kept = [n for n in range(12) if n != 3]
    expected = merged.weight[kept].square().sum(1).mean().item()
    assert site.merge.variance == pytest.approx(expected, rel=0.2)


def test_dead_units_are_counted_and_have_no_ratio() -> None:
    model = nn.Linear(6, 10)
    with torch.no_grad():
        model.weight[:4] = 0
    (site,) = diagnose_modules(model, [model], batches=[torch.randn(50, 6)]).sites
    assert site.merge.dead_units == pytest.approx(0.4) and ratio(site) == 1
    still = nn.Linear(6, 10)
    nn.init.zeros_(still.weight)
    (site,) = diagnose_modules(model, [still], batches=[torch.randn(50, 6)]).sites
    assert site.variance_ratio is None and site.parents[0].effective_rank is None and site.cka == (None,)


def close(left: Any, right: Any) -> bool:
    """Equal records, up to rounding."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[k], right[k]) for k in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, rel=1e-4, abs=1e-6) if isinstance(left, float) else left == right


def test_batch_size_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = llama(1), llama(2)
    found = []
    for at_once in (1, 100, 10**6):
        monkeypatch.setattr(probe, "_TOKENS_AT_ONCE", at_once)
        whole = probed(mean_of(one, two), [one, two], sample=64)
        found.append(whole.model_dump(exclude={"seconds"}))
    assert close(found[0], found[1]) and close(found[0], found[2])
    x, models = torch.randn(90, 8), (mlp(3, 8, 20, 4), mlp(4, 8, 20, 4))
    parts = [diagnose_modules(*models[:1], [models[1]], batches=x.split(n), sample=30) for n in (7, 90)]
    first, second = (p.model_dump(exclude={"seconds": True, "calibration": {"digest"}}) for p in parts)
    assert close(first, second)


def test_nan_is_reported_not_raised() -> None:
    good, bad = llama(0), llama(1)
    with torch.no_grad():
        bad.model.layers[1].mlp.down_proj.weight[3, 3] = torch.nan
    found = probed(bad, [good, good])
    by_name = {site.module: site for site in found.sites}
    assert by_name["model.layers.0"].merge.finite
    broken = by_name["model.layers.1"]
    assert not broken.merge.finite and broken.merge.variance is None
    assert broken.parents[0].finite and broken.variance_ratio is None and broken.cka == (None, None)
    assert found.head is not None and found.head.divergences == () and "merge" not in found.head.loss
    ActivationDiagnosis.model_validate_json(found.model_dump_json())


def test_intervals_hold_the_value_and_narrow_with_more_sequences() -> None:
    one, two = llama(3), llama(4)
    merged, widths = mean_of(one, two), []
    for sequences in (8, 64):
        found = probed(merged, [one, two], batches=text(sequences))
        assert found.head is not None
        estimates = [found.head.divergences[0].kl, found.sites[-1].variance_ratio]
        for estimate in estimates:
            assert estimate is not None and estimate.low is not None and estimate.high is not None
            assert estimate.low < estimate.value < estimate.high
            widths.append(estimate.high - estimate.low)
    assert widths[2] < widths[0] and widths[3] < widths[1]


def test_encoders_have_sentences_instead_of_a_head() -> None:
    one, two = bert(), bert()
    found = probed(one, [one, two])
    same, other = found.sentences
    assert found.head is None and same.model == "p0"
    assert same.cosine.value == pytest.approx(1) and same.neighbour_agreement.value == 1
    assert other.cosine.value < 0.9


def test_kept_tokens_are_the_same_for_all_models() -> None:
    model, batches = llama(0), text(8, 20)
    seen = ActivationProbe(batches, sample=16)
    for name, role in (("p", "parent"), ("m", "merge")):
        seen.observe(ModelRef(name=name, role="parent" if role == "parent" else "merge"), model)
    diagnosis = seen.finish()
    samples = seen.samples()
    assert diagnosis.sample == samples.tokens == 16 and [r.name for r in samples.models] == ["m", "p"]
    assert samples.sequences.tolist() == sorted([*range(8), *range(8)])
    site = next(s for s in samples.sites if s.site == "residual")
    values = samples.read(site)
    np.testing.assert_array_equal(values["m"], values["p"])
    ids = torch.from_numpy(np.concatenate(list(batches.ids.values())))
    with torch.no_grad():
        hidden = model.model(ids, output_hidden_states=True).hidden_states[1][:, 1:]
    for row, sequence in zip(values["m"], samples.sequences, strict=True):
        gaps = (hidden[int(sequence)] - torch.from_numpy(row)).abs().amax(1)
        assert gaps.min() < 1e-6
