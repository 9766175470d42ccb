"""One table: every strategy with parameters worth testing. The laws are in test_strategy_laws.py."""

from __future__ import annotations

from dataclasses import dataclass

from merge_models.merge.strategies import (
    AbstractStrategy,
    Karcher,
    Linear,
    ModelStock,
    MultiSlerp,
    NormMean,
    NuSlerp,
    Slerp,
    Orthogonal,
    TaskArithmetic,
    UnitMean,
)


@dataclass(frozen=True)
class Case:
    """A strategy under test.

    Attributes:
        name: the test's id.
        strategy: with per-model parameters for ``count`` parents, if they are tuples.
        count: how many parents to merge.
        identity: the strategy that must give back a single parent with weight 1 bit for bit, or None
            where the method merges exactly two (or more) models.
        exact_equal: equal parents come back bit for bit (false only where the method must change them:
            its docstring says why).
        symmetric: parents may be permuted with their weights (false where parameters tell them apart).
    """

    name: str
    strategy: AbstractStrategy
    count: int = 3
    identity: AbstractStrategy | None = None
    exact_equal: bool = True
    symmetric: bool = True


CASES = (
    Case("linear", Linear(weight=(0.5, 0.3, 0.2)), identity=Linear()),
    Case("linear-uniform", Linear(), identity=Linear()),
    Case("linear-negative", Linear(weight=(1.5, -0.75, 0.25)), identity=Linear()),
    Case(
        "task_arithmetic",
        TaskArithmetic(weight=(0.4, 0.3, 0.3)),
        identity=TaskArithmetic(),
    ),
    Case(
        "task_arithmetic-lambda",
        TaskArithmetic(weight=(0.9, -0.2, 0.3), lambda_=0.7),
        identity=TaskArithmetic(),
        exact_equal=False,  # the weights add up to 0.7: equal parents are moved towards the base
    ),
    Case("karcher", Karcher(weight=(0.5, 0.3, 0.2)), identity=Karcher()),
    Case("karcher-row", Karcher(weight=(0.5, 0.3, 0.2), per="row"), identity=Karcher(per="row")),
    Case("karcher-base", Karcher(origin="base"), identity=Karcher(origin="base")),
    Case("karcher-base-row", Karcher(origin="base", per="row"), identity=Karcher(origin="base", per="row")),
    Case("unit_mean", UnitMean(weight=(0.5, 0.3, 0.2)), identity=UnitMean()),
    Case("unit_mean-row", UnitMean(origin="base", per="row"), identity=UnitMean(origin="base", per="row")),
    Case("norm_mean", NormMean(weight=(0.5, 0.3, 0.2)), identity=NormMean()),
    Case("norm_mean-row", NormMean(origin="base", per="row"), identity=NormMean(origin="base", per="row")),
    Case("slerp", Slerp(t=0.3), count=2, symmetric=False),
    Case("nuslerp", NuSlerp(weight=(0.6, 0.2)), count=2),
    Case("nuslerp-row", NuSlerp(weight=(0.6, 0.2), nuslerp_flatten=False), count=2),
    Case("nuslerp-column", NuSlerp(weight=(0.6, 0.2), nuslerp_flatten=False, nuslerp_row_wise=True), count=2),
    Case("multislerp", MultiSlerp(weight=(0.5, 0.3, 0.2)), identity=MultiSlerp()),
    Case(
        "multislerp-raw", MultiSlerp(weight=(0.5, 0.3, 0.2), normalize_weights=False), identity=MultiSlerp()
    ),
    Case("model_stock", ModelStock()),
    Case("model_stock-row", ModelStock(filter_wise=True)),
    Case("orthogonal", Orthogonal(), identity=Orthogonal()),
    Case("orthogonal-weights", Orthogonal(weight=(0.5, 0.3, 0.2), map="log"), identity=Orthogonal(map="log")),
    Case(
        "orthogonal-blocks",
        Orthogonal(block_size=8, magnitude_correction=False),
        identity=Orthogonal(block_size=8),
    ),
    Case("orthogonal-output", Orthogonal(side="output"), identity=Orthogonal(side="output")),
    Case(
        "orthogonal-conflict",
        Orthogonal(variant="conflict", side="smaller"),
        identity=Orthogonal(variant="conflict", side="smaller"),
    ),
    Case(
        "orthogonal-sum",
        Orthogonal(residual="task_arithmetic", weight=(0.9, -0.2, 0.3), lambda_=0.7),
        identity=Orthogonal(residual="task_arithmetic"),
        exact_equal=False,  # residuals count 0.7: equal parents are moved towards the rotated base
    ),
)
