"""What a recipe means that its author may have meant otherwise."""

from __future__ import annotations

from merge_models.merge.contract.parameters import parameters_of
from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.strategies.registry import find_strategy


def gradients_for_models(recipe: Recipe) -> list[str]:
    """Returns gradients with as many values as there are models, of parameters that models may have of their
    own."""
    own = {p.name for p in parameters_of(find_strategy(recipe.merge_method)).values() if p.per_model}
    told: dict[str, None] = {}
    for _, part in recipe.parts():
        groups = [(part.models or (), {})] if part.models else []
        groups += [(piece.sources, piece.parameters) for piece in part.slices or ()]
        for entries, innermost in groups:
            for key, value in {**recipe.parameters, **part.parameters, **innermost}.items():
                if key in own and _is_list_of(value, len(entries)):
                    shown = ", ".join(map(str, value))
                    told[
                        f"{key}: [{shown}] is a gradient from the first layer to the last, the same for every"
                        f" model; for one value per model give each model its own {key}"
                        f" (--set {key}={shown.replace(' ', '')})"
                    ] = None
    return list(told)


def _is_list_of(value: object, count: int) -> bool:
    if not isinstance(value, (list, tuple)):
        return False
    return 1 < count == len(value) and all(isinstance(item, (int, float)) for item in value)
