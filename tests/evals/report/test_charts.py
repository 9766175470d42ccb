"""Charts as plain data: gaps, bands, folded rows."""

from __future__ import annotations

from merge_models.evals.report import charts, to_html
from merge_models.evals.schema import TensorWeights
from tests.evals.report.cases import CASES, evaluation


def test_undefined_values_leave_gaps() -> None:
    profile = next(c for c in charts.activation_profiles(CASES["not finite"]()) if c.key == "variance_ratio")
    merge = profile.panels[0].series[0]
    assert [v is None for v in merge.values] == [False] * 4 + [True] * 8
    assert profile.panels[0].bands[0].low[11] is not None


def test_profiles_hold_the_measured_ratios() -> None:
    made = evaluation(layers=5, parents=3, damage=0.5)
    assert made.activations is not None
    profile = charts.activation_profiles(made)[0]
    measured_ = [s.variance_ratio for s in made.activations.sites if s.site == "mlp"]
    panel = next(p for p in profile.panels if p.title == "MLP output")
    assert list(panel.series[0].values) == [e.value for e in measured_ if e]
    assert all(
        low is not None and high is not None and low <= 1 <= high
        for low, high in zip(panel.bands[0].low, panel.bands[0].high, strict=True)
    )


def test_nets_without_layers_keep_the_order_of_their_modules() -> None:
    made = evaluation(layers=3)
    assert made.activations is not None
    sites = tuple(s.model_copy(update={"layer": None}) for s in made.activations.sites if s.site == "mlp")
    made = made.model_copy(update={"activations": made.activations.model_copy(update={"sites": sites})})
    profile = charts.activation_profiles(made)[0]
    assert profile.depth == "module" and profile.positions == tuple(f"model.layers.{n}.mlp" for n in range(3))
    assert "model.layers.1.mlp" in to_html(made)


def test_many_kinds_of_tensor_fold_into_few_rows() -> None:
    made = CASES["weights only"]()
    assert made.weights is not None
    tensors = tuple(
        TensorWeights(
            name=f"l.{n}.experts.{e}.w{k}",
            layer=n,
            kind=f"experts.{e}.w{k}",
            shape=(2, 2),
            norm_ratio=1.0 + e,
        )
        for n in range(2)
        for e in range(64)
        for k in range(3)
    )
    made = made.model_copy(update={"weights": made.weights.model_copy(update={"tensors": tensors})})
    heat = charts.weight_heats(made)[0]
    assert heat.rows == ("experts.*.w*",) and heat.values[0] == (32.5, 32.5)
