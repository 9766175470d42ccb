"""Where a recipe gives other results than mergekit would, on purpose: what its plan says of that.

Each is a row of docs/differences-from-mergekit.md, where the reasons are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from merge_models.merge.checkpoint.sources.tied import is_head
from merge_models.merge.planning.plan import Plan
from merge_models.merge.planning.task import Task
from merge_models.merge.recipes.mergekit import METHODS
from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.recipes.settings import is_gradient
from merge_models.merge.strategies import AbstractStrategy
from merge_models.merge.strategies.registry import find_strategy

if TYPE_CHECKING:
    from merge_models.merge.tokenizer.alignment import Alignment


@dataclass(frozen=True)
class Case:
    """What is to be compared with mergekit.

    Attributes:
        recipe: the recipe; ``plan``: what it came to.
        alignment: the tokenizer that it asks for, or None.
        adapters: whether a model has one.
    """

    recipe: Recipe
    plan: Plan
    alignment: Alignment | None
    adapters: bool

    @property
    def method(self) -> str:
        return find_strategy(self.recipe.merge_method).name

    def merged(self) -> Iterable[Task]:
        """Returns the tasks that a strategy has made a kernel for."""
        return (task for task in self.plan.tasks if task.strategy is not None)

    def any(self, applies: Callable[[AbstractStrategy], bool]) -> bool:
        """Returns whether any tensor's strategy is so."""
        return any(applies(t.strategy) for t in self.merged() if t.strategy is not None)


@dataclass(frozen=True)
class Difference:
    """One difference.

    Attributes:
        what: its row on the page.
        told: what a plan says.
        applies: whether it does.
    """

    what: str
    told: str
    applies: Callable[[Case], bool]


def differences(case: Case) -> tuple[str, ...]:
    """Returns what a plan says; nothing for methods that mergekit has not."""
    return tuple(one.told for one in DIFFERENCES if case.method in METHODS and one.applies(case))


def _computes_narrowly(case: Case) -> bool:
    narrow = any(ref.info.dtype.size < 4 for task in case.merged() for ref in task.inputs)
    return case.recipe.dtype is not None or narrow


def _base_is_averaged_in(case: Case) -> bool:
    base = case.recipe.base_model
    whole = [part.models for _, part in case.recipe.parts() if part.models]
    left_out = any(base not in {entry.model for entry in models} for models in whole)
    return case.method in ("linear", "karcher") and base is not None and left_out


def _has_gradients(case: Case) -> bool:
    return any(is_gradient(value) for level in case.recipe.levels() for value in level.values())


def _has_any_donor(case: Case) -> bool:
    return case.recipe.base_model is None and len(case.recipe.model_names()) > 1


def _has_rows_of_filters(case: Case) -> bool:
    by_rows = case.method in ("della", "della_linear") or case.any(_goes_by_row)
    return by_rows and any(len(task.shape) > 2 for task in case.merged())


def _goes_by_row(strategy: AbstractStrategy) -> bool:
    return getattr(strategy, "per", "") == "row" or getattr(strategy, "filter_wise", False)


def _has_a_threshold(strategy: AbstractStrategy) -> bool:
    densities = getattr(strategy, "density", getattr(strategy, "select_topk", 1.0))
    return min(densities) < 1 if isinstance(densities, tuple) else densities < 1


def _rescales_by_probability(case: Case) -> bool:
    return case.method in _RANDOM and case.any(lambda s: getattr(s, "rescale", "") == "density")


def _is_restacked(case: Case) -> bool:
    return any([n for _, n in stack.origins] != list(range(len(stack.origins))) for stack in case.plan.stacks)


def _keeps_a_head(case: Case) -> bool:
    heads = [task.name for task in case.plan.tasks if is_head(task.name)]
    owners = [[head in model.tensors for model in case.plan.models] for head in heads]
    return bool(case.plan.stacks) and any(not all(has) for has in owners)


def _keeps_padding(case: Case) -> bool:
    settings, made = case.recipe.tokenizer_settings(), case.alignment
    if settings is None or made is None or settings.pad_to_multiple_of is not None:
        return False
    return made.rows > len(made.ids)


def _unites_words(case: Case) -> bool:
    made = case.alignment
    return made is not None and made.source == "union" and len(made.ids) > len(made.donor_ids)


def _moves_ids(case: Case) -> bool:
    config = getattr(case.plan.models[case.plan.donor], "config", {})
    return case.alignment is not None and case.alignment.remapped(config) != config


_RANDOM = ("dare_linear", "dare_ties", "della", "della_linear")
_RANKED = ("ties", "breadcrumbs", "breadcrumbs_ties", "sce")

DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "arithmetic and `dtype`",
        "dtype is the output's; arithmetic is float32 or wider, there it is in dtype or the models' own",
        _computes_narrowly,
    ),
    Difference(
        "`base_model` with `linear`, `karcher`",
        "base_model only donates config and tokenizer; there it is averaged in",
        _base_is_averaged_in,
    ),
    Difference(
        "gradients at the final norm and `lm_head`",
        "gradients end at the final norm and lm_head; there those take the first value",
        _has_gradients,
    ),
    Difference(
        "config and tokenizer without `base_model`",
        "config and tokenizer are the first model's; there those of a model picked by hash order",
        _has_any_donor,
    ),
    Difference(
        "`karcher`",
        "karcher takes weights and goes on to 1e-12; there weights have no effect and it stops early",
        lambda case: case.method == "karcher",
    ),
    Difference(
        "`multislerp`",
        "multislerp takes a step of the log map at the mean; there that step is identically zero",
        lambda case: case.method == "multislerp",
    ),
    Difference(
        "`slerp`",
        "slerp follows the arc at every angle; there it takes the straight line above cosine 0.9995",
        lambda case: case.method == "slerp",
    ),
    Difference(
        "rows of convolutions (`nuslerp`, `model_stock`, `della`)",
        "a row of a convolution is all that feeds one output; there it is a run along one axis",
        _has_rows_of_filters,
    ),
    Difference(
        "`model_stock` of task vectors that point apart",
        "model_stock never goes beyond the base; there it does where task vectors point apart",
        lambda case: case.method == "model_stock",
    ),
    Difference(
        "`rescale: true` of DARE and DELLA",
        "what is kept is divided by its probability; there the L1 norm is restored (here rescale: l1)",
        _rescales_by_probability,
    ),
    Difference(
        "random masks",
        "random masks are keyed by the recipe's seed (0 unless given); there they are unseeded",
        lambda case: case.method in _RANDOM,
    ),
    Difference(
        "ties at a threshold (`ties`, `breadcrumbs`, `sce`)",
        "of equal values at the threshold the first are taken; there any",
        lambda case: case.method in _RANKED and case.any(_has_a_threshold),
    ),
    Difference(
        "thresholds such as 1e-6 in `sce`, `model_stock`",
        "small task vectors count as large ones do; there they are below an absolute 1e-6",
        lambda case: case.method in ("sce", "model_stock"),
    ),
    Difference(
        "`arcee_fusion`",
        "arcee_fusion writes the output's dtype, by exact quantiles; there float32, by those of a sample",
        lambda case: case.method == "arcee_fusion",
    ),
    Difference(
        "lists that speak of layers in `config.json` of stacked models",
        "lists in config.json that speak of layers follow their layers; there they stay as they were",
        _is_restacked,
    ),
    Difference(
        "a head of its own in some of the models of a stack",
        "a head that any model of the slices has is kept; there only one of the last slice's",
        _keeps_a_head,
    ),
    Difference(
        "rows of the embeddings beyond the tokens, with `tokenizer`",
        "rows of the embeddings beyond the tokens are kept; there they are cut",
        _keeps_padding,
    ),
    Difference(
        "ordinary tokens of other models in a union",
        "other models' ordinary tokens are part of the vocabulary; there they cut every text that holds them",
        _unites_words,
    ),
    Difference(
        "token ids in `config.json` and `generation_config.json`",
        "token ids in config.json and generation_config.json follow their tokens; there they stay",
        _moves_ids,
    ),
    Difference(
        "`model+adapter`",
        "adapters are added unrounded, block by block; there the sum is rounded and saved first",
        lambda case: case.adapters,
    ),
)
"""What a plan can tell; the page has more, which errors and files tell."""
