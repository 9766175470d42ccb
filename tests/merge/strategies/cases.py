"""One table: every strategy with parameters worth testing. The laws are in test_strategy_laws.py."""

from __future__ import annotations

from dataclasses import dataclass

from merge_models.merge.strategies import (
    AbstractStrategy,
    ArceeFusion,
    Breadcrumbs,
    BreadcrumbsTies,
    Consensus,
    DareLinear,
    DareTies,
    Della,
    DellaLinear,
    Frechet,
    Karcher,
    Linear,
    LogLinear,
    MagMax,
    ModelStock,
    MultiSlerp,
    NearSwap,
    NormMean,
    NuSlerp,
    Orthogonal,
    Passthrough,
    Pcb,
    Ram,
    RamPlus,
    Sce,
    Slerp,
    Stochastic,
    TaskArithmetic,
    Ties,
    UnitMean,
    Wasserstein,
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
        no_mean: why the strategy is not the Fréchet mean of the manifold that it names; once a strategy, and
            empty where test_carriers.py shows that it is.
    """

    name: str
    strategy: AbstractStrategy
    count: int = 3
    identity: AbstractStrategy | None = None
    exact_equal: bool = True
    symmetric: bool = True
    no_mean: str = ""


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
    Case(
        "norm_mean",
        NormMean(weight=(0.5, 0.3, 0.2)),
        identity=NormMean(),
        no_mean="flat, then rescaled: a control for karcher",
    ),
    Case("norm_mean-row", NormMean(origin="base", per="row"), identity=NormMean(origin="base", per="row")),
    Case("slerp", Slerp(t=0.3), count=2, symmetric=False),
    Case("nuslerp", NuSlerp(weight=(0.6, 0.2)), count=2),
    Case("nuslerp-row", NuSlerp(weight=(0.6, 0.2), nuslerp_flatten=False), count=2),
    Case("nuslerp-column", NuSlerp(weight=(0.6, 0.2), nuslerp_flatten=False, nuslerp_row_wise=True), count=2),
    Case("multislerp", MultiSlerp(weight=(0.5, 0.3, 0.2)), identity=MultiSlerp()),
    Case(
        "multislerp-raw", MultiSlerp(weight=(0.5, 0.3, 0.2), normalize_weights=False), identity=MultiSlerp()
    ),
    Case("model_stock", ModelStock(), no_mean="draws the mean to the base by how little models agree"),
    Case("model_stock-row", ModelStock(filter_wise=True)),
    Case(
        "orthogonal",
        Orthogonal(),
        identity=Orthogonal(),
        no_mean="a mean of generators at the identity: the Fréchet mean only where rotations commute",
    ),
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
        "orthogonal-ties",
        Orthogonal(residual="ties", density=1.0, weight=(0.5, 0.3, 0.2)),
        identity=Orthogonal(residual="ties", density=1.0),
    ),
    Case(
        "orthogonal-ties-trimmed",
        Orthogonal(residual="ties", density=0.3, lambda_=0.8),
        exact_equal=False,  # most of the residual is trimmed away
    ),
    Case(
        "orthogonal-sum",
        Orthogonal(residual="task_arithmetic", weight=(0.9, -0.2, 0.3), lambda_=0.7),
        identity=Orthogonal(residual="task_arithmetic"),
        exact_equal=False,  # residuals count 0.7: equal parents are moved towards the rotated base
    ),
    Case("log_linear", LogLinear(weight=(0.5, 0.3, 0.2)), identity=LogLinear()),
    Case("log_linear-base", LogLinear(origin="base", zeros="skip"), identity=LogLinear(origin="base")),
    Case("wasserstein", Wasserstein(weight=(0.5, 0.3, 0.2)), identity=Wasserstein()),
    Case("wasserstein-base", Wasserstein(origin="base"), identity=Wasserstein(origin="base")),
    Case("wasserstein-full", Wasserstein(covariance="full"), identity=Wasserstein(covariance="full")),
    Case(
        "frechet",
        Frechet(weight=(0.5, 0.3, 0.2)),
        identity=Frechet(),
        no_mean="is the mean: tests/merge/strategies/test_frechet.py",
    ),
    Case("frechet-row", Frechet(per="row", origin="base"), identity=Frechet(per="row", origin="base")),
    Case("frechet-head", Frechet(per="head", heads=4, manifold="stiefel"), identity=Frechet(per="head")),
    Case("frechet-rotations", Frechet(manifold="rotations", weight=(0.5, 0.3, 0.2)), identity=Frechet()),
    Case("frechet-lorentz", Frechet(manifold="lorentz", per="row"), identity=Frechet(manifold="lorentz")),
    Case("ties", Ties(weight=(0.5, 0.3, 0.2)), identity=Ties(), no_mean="drops elements"),
    Case("ties-trimmed", Ties(density=0.3), identity=Ties(), exact_equal=False),  # small deltas are dropped
    Case(
        "ties-mixed", Ties(weight=(1.5, -0.5, 0.3), density=(0.2, 1.0, 0.0), rescale="l1"), exact_equal=False
    ),
    Case("ties-model", Ties(density=0.4, scope="model"), identity=Ties(scope="model"), exact_equal=False),
    Case("dare_linear", DareLinear(weight=(0.4, 0.3, 0.3)), identity=DareLinear(), no_mean="drops elements"),
    Case("dare_linear-random", DareLinear(weight=(0.4, 0.3, 0.3), density=0.6), exact_equal=False),
    Case("dare_ties", DareTies(weight=(0.5, 0.25, 0.25)), identity=DareTies(), no_mean="drops elements"),
    Case("dare_ties-random", DareTies(density=(0.2, 0.5, 1.0), rescale="l1"), exact_equal=False),
    Case(
        "breadcrumbs", Breadcrumbs(weight=(0.5, 0.3, 0.2)), identity=Breadcrumbs(), no_mean="drops elements"
    ),
    Case("breadcrumbs-banded", Breadcrumbs(density=0.5, gamma=(0.1, 0.0, 0.2)), exact_equal=False),
    Case(
        "breadcrumbs_ties",
        BreadcrumbsTies(normalize=True),
        identity=BreadcrumbsTies(),
        no_mean="drops elements",
    ),
    Case("breadcrumbs_ties-banded", BreadcrumbsTies(density=0.5, rescale="l1"), exact_equal=False),
    Case("della", Della(weight=(0.5, 0.3, 0.2)), identity=Della(), no_mean="drops elements"),
    Case("della-random", Della(density=(0.3, 0.5, 1.0), epsilon=0.1), exact_equal=False),
    Case(
        "della_linear", DellaLinear(weight=(0.5, 0.3, 0.2)), identity=DellaLinear(), no_mean="drops elements"
    ),
    Case("della_linear-random", DellaLinear(density=0.5, rescale="l1"), exact_equal=False),
    Case("sce", Sce(), identity=Sce(), no_mean="drops elements"),
    Case("sce-selected", Sce(select_topk=0.3), exact_equal=False),  # selects where parents differ
    Case("ram", Ram(epsilon=0.0), identity=Ram(epsilon=0.0), no_mean="adds what one model alone has changed"),
    Case("ram-epsilon", Ram(epsilon=0.05), exact_equal=False),  # small differences count as none
    Case(
        "ramplus_tl",
        RamPlus(epsilon=0.0),
        identity=RamPlus(epsilon=0.0, r=0.0),
        no_mean="adds what one model alone has changed",
    ),
    Case("ramplus_tl-model", RamPlus(epsilon=0.05, alpha=1.0, scope="model"), exact_equal=False),
    # elements with poor scores are dropped
    Case("pcb", Pcb(ratio=0.5), exact_equal=False, no_mean="weights elements by their own size"),
    Case("pcb-tensor", Pcb(ratio=0.2, scope="tensor", lambda_=0.8), exact_equal=False),
    Case(
        "consensus",
        Consensus(weight=(0.5, 0.3, 0.2), mask_lambda=0.1),
        identity=Consensus(),
        no_mean="drops elements",
    ),
    Case("consensus-k", Consensus(mask_lambda=(0.2, 0.4, 0.6), k=3, lambda_=0.5), exact_equal=False),
    Case(
        "consensus-edges",  # weights whose ratios meet the edge of a mask exactly
        Consensus(weight=(0.1, 0.2, 0.3, 0.4), mask_lambda=0.5),
        count=4,
        exact_equal=False,  # it matters to one of them only
    ),
    Case("magmax", MagMax(), identity=MagMax(), no_mean="takes the largest change"),
    Case("magmax-weights", MagMax(weight=(1.0, 0.7, -0.3)), exact_equal=False),  # weights scale
    # it moves by at most t
    Case("nearswap", NearSwap(t=0.01), count=1, exact_equal=False, no_mean="clamps changes"),
    # it takes large changes only
    Case("arcee_fusion", ArceeFusion(), count=1, exact_equal=False, no_mean="takes large changes only"),
    Case("passthrough", Passthrough(), count=1, identity=Passthrough()),
    Case("passthrough-scale", Passthrough(scale=0.5), count=1, exact_equal=False),
    Case("stochastic", Stochastic(weight=(0.5, 0.3, 0.2)), identity=Stochastic(), no_mean="averages nothing"),
    Case("stochastic-row", Stochastic(weight=(3.0, 2.0, 0.0), per="row"), identity=Stochastic(per="row")),
    Case("stochastic-block", Stochastic(per="block"), identity=Stochastic(per="block")),
)
