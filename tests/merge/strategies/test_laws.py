"""Laws that every strategy meets, whatever its formula (design: numerics)."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from merge_models.merge import NonFiniteError, merge
from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.kernels import blocks, compiled
from merge_models.merge.strategies import STRATEGIES
from merge_models.merge.strategies.registry import find_strategy
from tests.merge.strategies.cases import CASES, Case

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SHAPES = {
    "matrix": (24, 16),
    "wide": (8, 40),
    "vector": (33,),
    "scalar": (),
    "empty": (0, 7),
    "column": (9, 1),
    "conv": (6, 4, 3, 3),
}


def over(cases: Iterable[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", list(cases), ids=lambda case: case.name)


cases = over(CASES)


def make_state(seed: int, dtype: torch.dtype, spread: float = 0.05) -> dict[str, Tensor]:
    """A sibling: a shared base plus its own small difference."""
    own, shared = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    state = {}
    for name, shape in SHAPES.items():
        base = torch.randn(shape, generator=shared)
        difference = torch.randn(shape, generator=own) * (spread if seed else 0.0)
        state[name] = (base + difference).to(dtype)
    return state


def family(case: Case, dtype: torch.dtype) -> tuple[list[dict[str, Tensor]], dict[str, Tensor] | None]:
    parents = [make_state(seed, dtype) for seed in range(1, case.count + 1)]
    return parents, base_for(case, dtype)


def base_for(case: Case, dtype: torch.dtype) -> dict[str, Tensor] | None:
    return None if not case.strategy.base_model.is_origin else make_state(0, dtype)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Bit for bit, signs of zero included."""
    assert left.keys() == right.keys()
    for name in left:
        a, b = left[name].contiguous().reshape(-1), right[name].contiguous().reshape(-1)
        assert left[name].shape == right[name].shape and a.dtype == b.dtype
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8)), name


def permuted(case: Case, order: list[int]):
    changes = {}
    for parameter in parameters_of(type(case.strategy)).values():
        value = getattr(case.strategy, parameter.field)
        if parameter.per_model and isinstance(value, tuple):
            changes[parameter.field] = tuple(value[i] for i in order)
    return dataclasses.replace(case.strategy, **changes)


def copies(state: dict[str, Tensor], count: int) -> list[dict[str, Tensor]]:
    """Equal models; with the very same tensors they would be one model."""
    return [{name: value.clone() for name, value in state.items()} for _ in range(count)]


def test_every_strategy_has_a_case() -> None:
    assert {type(case.strategy) for case in CASES} == set(STRATEGIES)


def test_the_registry_says_what_the_classes_say() -> None:
    for strategy in STRATEGIES:
        assert all(find_strategy(word) is strategy for word in (strategy.name, *strategy.aliases))
    words = [word for strategy in STRATEGIES for word in (strategy.name, *strategy.aliases)]
    assert len(words) == len({*words})


@cases
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_defined_everywhere(case: Case, dtype: torch.dtype) -> None:
    parents, base = family(case, dtype)
    merged = merge(parents, case.strategy, base=base)
    for name, shape in SHAPES.items():
        assert merged[name].shape == shape and merged[name].dtype == dtype
        assert torch.isfinite(merged[name]).all()


@over(case for case in CASES if case.identity is not None)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_parent_comes_back(case: Case, dtype: torch.dtype) -> None:
    parent = make_state(1, dtype)
    parent["vector"][0] = -0.0
    assert_same(merge([parent], case.identity, base=base_for(case, dtype)), parent)


@over(case for case in CASES if case.exact_equal)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_parents_come_back(case: Case, dtype: torch.dtype) -> None:
    parent = make_state(1, dtype)
    same = copies(parent, case.count)
    merged = merge(same, case.strategy, base=base_for(case, dtype))
    assert_same({k: v + 0.0 for k, v in merged.items()}, {k: v + 0.0 for k, v in parent.items()})


@over(case for case in CASES if case.strategy.base_model.is_origin)
def test_parents_equal_to_the_base_give_the_base(case: Case) -> None:
    base = make_state(0, torch.bfloat16)
    merged = merge(copies(base, case.count), case.strategy, base=base)
    assert_same({k: v + 0.0 for k, v in merged.items()}, {k: v + 0.0 for k, v in base.items()})


def _scales(case: Case) -> set[str]:
    """What multiplies task vectors; not of means, which sum models themselves."""
    if not case.strategy.base_model.is_required:
        return set()
    return {field.name for field in dataclasses.fields(case.strategy)} & {"weight", "lambda_"}


@over(case for case in CASES if _scales(case))
@pytest.mark.parametrize("compiled_too", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("scale", [1e20, 1e30, 1e-300])
def test_no_scale_moves_parents_equal_to_the_base(
    case: Case, scale: float, compiled_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large (or, as a divisor, small) it is: nothing times it is nothing."""
    if not compiled_too:
        monkeypatch.setattr(compiled, "library", lambda: None)
        monkeypatch.setattr(blocks, "native_library", lambda: None)
    settings = {name: 1e30 if name == "lambda_" and scale < 1 else scale for name in _scales(case)}
    strategy = dataclasses.replace(case.strategy, **settings)
    for dtype in (torch.bfloat16, torch.float64):
        base = make_state(0, dtype)
        merged = merge(copies(base, case.count), strategy, base=base)
        assert_same({k: v + 0.0 for k, v in merged.items()}, {k: v + 0.0 for k, v in base.items()})


@over(case for case in CASES if case.symmetric)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_order_of_parents_does_not_matter(case: Case, dtype: torch.dtype) -> None:
    parents, base = family(case, dtype)
    order = list(range(case.count))[::-1]
    strategy = permuted(case, order)
    there = merge(parents, case.strategy, base=base)
    back = merge([parents[i] for i in order], strategy, base=base)
    for name in there:
        ulp = torch.finfo(dtype).eps * there[name].double().abs() * 1.01
        gap = (there[name].double() - back[name].double()).abs()
        assert bool((gap <= (ulp if dtype is torch.float32 else 0)).all()), name


@over(case for case in CASES if case.symmetric and case.strategy.base_model.is_origin)
def test_order_of_many_coarse_task_vectors_does_not_matter(case: Case) -> None:
    """Differences of bfloat16 numbers are few, so rules meet their edges exactly, and often."""
    count, generator = case.count, torch.Generator().manual_seed(3)
    base = torch.randn(300, 400, generator=generator).bfloat16()
    moved = [(base + 0.02 * torch.randn(base.shape, generator=generator)).bfloat16() for _ in range(count)]
    found = []
    for order in itertools.islice(itertools.permutations(range(count)), 4):
        strategy = permuted(case, list(order))
        merged = merge([{"w": moved[i]} for i in order], strategy, base={"w": base}, dtype="float32")
        found.append(merged["w"])
    for other in found[1:]:
        assert torch.allclose(other, found[0], rtol=1e-5, atol=1e-7)


@over(case for case in CASES if case.strategy.carrier == "euclidean" and hasattr(case.strategy, "density"))
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("compiled_too", [True, False], ids=["compiled", "torch"])
def test_without_density_nothing_is_left(
    case: Case, dtype: torch.dtype, compiled_too: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled_too:
        monkeypatch.setattr(compiled, "library", lambda: None)
        monkeypatch.setattr(blocks, "native_library", lambda: None)
    parents, base = family(case, dtype)
    settings = {"density": 0.0, **({"gamma": 0.0} if hasattr(case.strategy, "gamma") else {})}
    assert base is not None
    merged = merge(parents, dataclasses.replace(case.strategy, **settings), base=base)
    if "breadcrumbs" in case.name:  # the middle element is left of an odd number of them
        even = ("matrix", "wide", "conv")
        merged, base = ({name: state[name] for name in even} for state in (merged, base))
    assert_same({k: v + 0.0 for k, v in merged.items()}, {k: v + 0.0 for k, v in base.items()})


@cases
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_of_the_caller_stay_as_they_were(case: Case, dtype: str) -> None:
    parents, base = family(case, torch.float64)
    before = [{name: value.clone() for name, value in state.items()} for state in (*parents, base or {})]
    merge(parents, case.strategy, base=base, dtype=dtype)
    for state, kept in zip((*parents, base or {}), before, strict=True):
        assert_same(state, kept)


@cases
def test_threads_and_repetition_do_not_change_bytes(case: Case) -> None:
    large = {"long": torch.randn(3, 700, 300, generator=torch.Generator().manual_seed(5))}
    parents = [{"long": large["long"] + 0.01 * torch.randn_like(large["long"])} for _ in range(case.count)]
    base = None if not case.strategy.base_model.is_origin else large
    first = merge(parents, case.strategy, base=base, threads=1)
    for threads in (1, 2, 5):
        assert_same(merge(parents, case.strategy, base=base, threads=threads), first)


@cases
def test_inputs_are_left_as_they_are(case: Case) -> None:
    parents, base = family(case, torch.float64)
    merge(parents, case.strategy, base=base)
    fresh, fresh_base = family(case, torch.float64)
    for state, expected in zip(parents, fresh, strict=True):
        assert_same(state, expected)
    if base is not None and fresh_base is not None:
        assert_same(base, fresh_base)


@cases
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_stops_with_names(case: Case, value: float) -> None:
    parents, base = family(case, torch.float32)
    parents[-1]["matrix"][3, 2] = value
    with pytest.raises(NonFiniteError, match=f"model {case.count - 1}.*'matrix'"):
        merge(parents, case.strategy, base=base)


@cases
def test_zero_tensors_are_defined(case: Case) -> None:
    parents, base = family(case, torch.float32)
    for parent in parents:
        parent["matrix"].zero_()
    parents[0]["wide"].zero_()
    merged = merge(parents, case.strategy, base=base)
    assert all(torch.isfinite(tensor).all() for tensor in merged.values())
