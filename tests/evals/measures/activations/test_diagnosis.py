"""Activations: known answers, float64 references, and what must not matter."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from merge_models.evals.diagnostics.activations.cka import linear_cka
from merge_models.evals.inputs.calibration import Batches, Text
from merge_models.evals.measures.activations import probe
from merge_models.evals.measures.activations.modules import diagnose_modules
from merge_models.evals.measures.activations.probe import ActivationProbe
from merge_models.evals.measures.activations.sites import find_sites
from merge_models.evals.schema import ActivationDiagnosis, Calibration, ModelRef, SiteActivations
from merge_models.merge.errors import MergeError

VOCABULARY, LENGTH = 40, 24


def white_inputs(count: int, width: int, seed: int = 0) -> Tensor:
    """[count, width] with mean 0 and covariance I, exactly."""
    x = np.random.default_rng(seed).standard_normal((count, width))
    x -= x.mean(0)
    return torch.from_numpy(np.linalg.svd(x, full_matrices=False)[0] * np.sqrt(count)).float()


def mlp(seed: int, *widths: int) -> Any:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inside, outside in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def mean_of(*models: nn.Module) -> Any:
    """Their soup."""
    merged = copy.deepcopy(models[0])
    states = [m.state_dict() for m in models]
    merged.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    return merged


def llama(seed: int, **settings: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    return LlamaForCausalLM(LlamaConfig(**{**shape, **heads, **settings})).eval()


def text(sequences: int = 12, length: int = LENGTH, seed: int = 0) -> Batches:
    """Random ids in two domains."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, (sequences, length))
    half = {"a": ids[: sequences // 2], "b": ids[sequences // 2 :]}
    tokens = sequences * (length - 1)
    record = Calibration(source="random", digest="0" * 64, sequences=sequences, tokens=tokens, seed=seed)
    return Batches(half, record, 0.0, Text("random", {}, record.digest))


def probed(
    merge: Any, parents: list[Any], base: Any = None, batches: Batches | None = None, **options: Any
) -> ActivationDiagnosis:
    found = ActivationProbe(batches or text(), **options)
    for n, parent in enumerate(parents):
        found.observe(ModelRef(name=f"p{n}", role="parent"), parent)
    if base is not None:
        found.observe(ModelRef(name="base", role="base"), base)
    found.observe(ModelRef(name="merge", role="merge"), merge)
    return found.finish()


def ratio(site: SiteActivations) -> float:
    assert site.variance_ratio is not None
    return site.variance_ratio.value


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


def kernel_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Debiased CKA from n x n kernels, as Song et al. (2012) write HSIC_1."""
    k, m = x @ x.T, y @ y.T
    n = len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        one = np.ones(n)
        middle = (one @ a @ one) * (one @ b @ one) / ((n - 1) * (n - 2))
        return float((np.trace(a @ b) + middle - 2 / (n - 2) * (one @ a @ b @ one)) / (n * (n - 3)))

    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("width", [3, 20, 200])
def test_cka_is_the_kernel_formula_at_any_width(width: int) -> None:
    draw = np.random.default_rng(width)
    x = draw.standard_normal((60, width)) + 3
    y = x @ draw.standard_normal((width, 30)) + draw.standard_normal((60, 30))
    found = linear_cka(torch.from_numpy(x), torch.from_numpy(y))
    assert found == pytest.approx(kernel_cka(x, y), rel=1e-9)
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(-7 * x + 1)) == pytest.approx(1)


def test_cka_of_independent_wide_data_is_near_zero_and_of_constant_data_undefined() -> None:
    x, y = torch.randn(100, 2000), torch.randn(100, 2000)
    found = linear_cka(x, y)
    assert found is not None and abs(found) < 0.05
    assert linear_cka(x, torch.ones(100, 5)) is None
    assert linear_cka(x[:3], y[:3]) is None


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


def bert() -> Any:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    return BertModel(config).eval()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=8, n_layer=2, n_head=2)).eval()


def albert() -> Any:
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=8, hidden_size=8, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=16,
    )  # fmt: skip
    return AlbertModel(config).eval()


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=VOCABULARY, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_local_experts=2,
        num_attention_heads=2, num_key_value_heads=2,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


@pytest.mark.parametrize(
    ("make", "attention", "mlp_name"),
    [
        (lambda: llama(0), "model.layers.{}.self_attn", "model.layers.{}.mlp"),
        (gpt2, "transformer.h.{}.attn", "transformer.h.{}.mlp"),
        (bert, "encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
        (mixtral, "model.layers.{}.self_attn", "model.layers.{}.mlp"),
    ],
)
def test_sites_are_found_by_structure(make: Callable[[], Any], attention: str, mlp_name: str) -> None:
    model = make()
    found = probed(model, [model])
    layers = [n for n in range(2) for _ in range(3)]
    assert [s.layer for s in found.sites] == [None, *layers]
    named = {(s.site, s.layer): s.module for s in found.sites}
    for n in range(2):
        assert named["attention", n] == attention.format(n)
        assert named["mlp", n] == mlp_name.format(n)
    assert all(s.merge.variance and s.merge.variance > 0 for s in found.sites)


def test_shared_layers_are_measured_at_each_depth() -> None:
    model = albert()
    sites = [s for s in probed(model, [model]).sites if s.site == "residual"]
    assert [s.layer for s in sites] == [0, 1, 2]
    assert len({s.merge.variance for s in sites}) == 3


def test_torchs_own_encoder_and_plain_nets() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    found = diagnose_modules(model, [model], batches=[torch.randn(6, 5, 8)])
    assert [s.module for s in found.sites if s.site == "mlp"] == ["layers.0.linear2", "layers.1.linear2"]
    assert [s.module for s in found.sites if s.site == "attention"] == [
        "layers.0.self_attn",
        "layers.1.self_attn",
    ]
    convolution = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 2))
    assert [s.module for s in find_sites(convolution)] == ["0", "1", "2", "3"]
    sites = diagnose_modules(convolution, [convolution], batches=[torch.randn(9, 3, 8, 8)]).sites
    x = torch.randn(9, 3, 8, 8)
    sites = diagnose_modules(convolution, [convolution], batches=[x]).sites
    expected = convolution[0](x).movedim(1, -1).reshape(-1, 5).double().var(0, correction=0).mean().item()
    assert sites[0].merge.variance == pytest.approx(expected)


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, final_logit_softcapping=1.0,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


def granite() -> Any:
    from transformers import GraniteConfig, GraniteForCausalLM

    config = GraniteConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, logits_scaling=3.0,
    )  # fmt: skip
    return GraniteForCausalLM(config).eval()


def strange() -> Any:
    """A head that is more than a matrix."""
    model = llama(5)
    forward = model.forward
    model.forward = lambda *a, **k: _squared(forward(*a, **k))
    return model


def _squared(output: Any) -> Any:
    output.logits = 30 * output.logits.square()
    return output


@pytest.mark.parametrize("make", [lambda: llama(0), gpt2, gemma, granite, strange])
def test_predictions_are_those_of_the_model(make: Callable[[], Any]) -> None:
    """Loss, entropy and distances against float64 numbers from the model's own logits, of all tokens."""
    model, batches = make(), text(6, 10)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.3)
    if make is strange:
        other = strange()
        with torch.no_grad():
            other.lm_head.weight.mul_(1.3)
    head = probed(model, [other], batches=batches).head
    assert head is not None and head.predictions == 6 * 8
    ids = torch.from_numpy(np.concatenate(list(batches.ids.values())))
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids).logits[:, 1:-1].double().log_softmax(-1) for m in (model, other))
    labels = ids[:, 2:]
    assert head.loss["merge"].value == pytest.approx(
        -ours.gather(-1, labels[..., None]).mean().item(), rel=1e-4
    )
    assert head.entropy["p0"].value == pytest.approx(-(theirs.exp() * theirs).sum(-1).mean().item(), rel=1e-4)
    p, q = theirs.exp(), ours.exp()
    m = ((p + q) / 2).log()
    js = ((p * (theirs - m)).sum(-1) + (q * (ours - m)).sum(-1)) / 2
    angle = 2 * torch.arccos((p * q).sqrt().sum(-1).clamp(max=1))
    (divergence,) = head.divergences
    tolerance: dict[str, Any] = {"rel": 2e-3, "abs": 1e-7}
    assert divergence.kl.value == pytest.approx((p * (theirs - ours)).sum(-1).mean().item(), **tolerance)
    assert divergence.js.value == pytest.approx(js.mean().item(), **tolerance)
    assert divergence.fisher_rao.value == pytest.approx(angle.mean().item(), **tolerance)
    same = (ours.argmax(-1) == theirs.argmax(-1)).double().mean().item()
    assert divergence.top1_agreement.value == pytest.approx(same)
    assert divergence.kl_by_domain.keys() == {"a", "b"}


@pytest.mark.parametrize("tied", [True, False])
def test_predictions_are_compared_over_the_tokens_that_all_have(tied: bool) -> None:
    """A model with more tokens, of which none is in the text, predicts the others as before."""
    parent = llama(0, tie_word_embeddings=tied)
    merge = copy.deepcopy(parent)
    merge.resize_token_embeddings(VOCABULARY + 7, mean_resizing=False)
    with torch.no_grad():
        merge.get_output_embeddings().weight[VOCABULARY:] = 3.0
    found = probed(merge, [parent], llama(1, tie_word_embeddings=tied))
    assert found.head is not None
    of_parent, of_base = found.head.divergences
    assert of_parent.kl.value == pytest.approx(0, abs=1e-12) and of_parent.top1_agreement.value == 1
    assert of_base.kl.value > 1e-3
    assert found.head.loss["merge"].value == pytest.approx(found.head.loss["p0"].value, rel=1e-6)


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
