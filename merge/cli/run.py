"""The command ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import write_options
from merge_models.merge.cli.recipes import naming, with_rounding
from merge_models.merge.cli.results import tell_result
from merge_models.merge.cli.reviews import review_asked_for, review_options
from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from merge_models.merge.publishing.prepared import Prepared
    from merge_models.merge.recipes.recipe import Recipe
from merge_models.merge.cli.carrying import carry_out, tell_plan


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--intermediate-dir",
    type=click.Path(path_type=Path),
    help="Where the results of a file's earlier recipes go [default: OUT.intermediate].",
)
@write_options
@review_options
def run(recipe: Path, intermediate_dir: Path | None, **options: Any) -> None:
    """Run a recipe: a YAML file in mergekit's dialect, with one recipe or several.

    \b
    Example: merge-models run recipe.yml -o OUT
    """
    from merge_models.merge.recipes.recipe import load_recipes

    with naming(recipe):
        recipes = load_recipes(recipe)
        if len(recipes) == 1:
            carry_out(recipes[0], options)
        else:
            _run_several(recipes, intermediate_dir, options)


def _run_several(recipes: Sequence[Recipe], intermediate_dir: Path | None, options: dict[str, Any]) -> None:
    from merge_models.merge.api.several import run_recipes
    from merge_models.merge.cli.progress import Progress

    recipes = with_rounding(options, recipes)
    if review_asked_for(options):
        raise MergeError("--eval judges a file's only recipe; for several, run merge-models eval afterwards")
    quiet, verbose, out = options.pop("quiet"), options.pop("verbose"), options.pop("out")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            tell_plan(prepared, options, quiet, verbose)
            progress.start(prepared.plan.bytes_out)

        steps = run_recipes(
            recipes,
            out,
            intermediate_dir=intermediate_dir,
            progress=progress.advance,
            planned=planned,
            **options,
        )
    for step in () if quiet else steps:
        if step.result is None:
            click.echo(printable(f"{step.target}: {step.name} was made before and is used again", 2000))
        else:
            tell_result(step.result, verbose)
