"""One table: every strategy with parameters worth testing. The laws are in test_strategy_laws.py."""

from __future__ import annotations

from dataclasses import dataclass

from merge_models.merge.strategies import AbstractStrategy, Linear, TaskArithmetic


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
)
