"""The command ``merge``."""

from __future__ import annotations

from typing import Any

import click

from merge_models.merge.cli.carrying import carry_out
from merge_models.merge.cli.options import write_options
from merge_models.merge.cli.recipes import recipe_from, strategy_options
from merge_models.merge.cli.reviews import review_options


@click.command()
@strategy_options
@write_options
@review_options
def merge(
    models: tuple[str, ...],
    method: str,
    base: str | None,
    weights: str | None,
    settings: tuple[str, ...],
    dtype: str | None,
    seed: int,
    **options: Any,
) -> None:
    """Merge MODELS: folders, .safetensors files or Hub ids (org/name[@revision]).

    \b
    Example: merge-models merge A B C -m linear --weights .5,.3,.2 -o OUT
    """
    carry_out(recipe_from(models, method, base, weights, settings, dtype, seed), options)
