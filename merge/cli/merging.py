"""The commands ``merge`` and ``run``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import write_options
from merge_models.merge.cli.planning import memory_of, plan_text
from merge_models.merge.cli.recipes import naming, recipe_from, strategy_options, with_rounding
from merge_models.merge.cli.results import tell_result
from merge_models.merge.cli.reviews import review_asked_for, review_options
from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from merge_models.merge.publishing.prepared import Prepared
    from merge_models.merge.recipes.recipe import Recipe


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
    _run(recipe_from(models, method, base, weights, settings, dtype, seed), options)


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
            _run(recipes[0], options)
        else:
            _run_several(recipes, intermediate_dir, options)


def _run(recipe: Recipe, options: dict[str, Any]) -> None:
    from merge_models.merge.api.running import write_recipe
    from merge_models.merge.cli.progress import Progress

    (recipe,) = with_rounding(options, [recipe])
    review = review_asked_for(options)
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            _tell_plan(prepared, options, quiet, verbose)
            if review:
                review.check(prepared)
            progress.start(prepared.plan.bytes_out)

        def judge(folder: Path, prepared: Prepared) -> str:
            assert review is not None
            return review.judge(folder, options["out"].name, prepared)

        result = write_recipe(
            recipe,
            progress=progress.advance,
            planned=planned,
            review=judge if review else None,
            **options,
        )
    if not quiet:
        tell_result(result, verbose)
    if review:
        review.close()


def _tell_plan(prepared: Prepared, options: dict[str, Any], quiet: bool, verbose: bool) -> None:
    """Prints what a recipe's author may not expect, or the whole plan."""
    if quiet:
        return
    if verbose:
        click.echo(plan_text(prepared, memory_of(prepared, options["threads"], options["max_memory"])))
    else:
        for remark in prepared.plan.remarks:
            click.echo(printable(f"note: {remark}", 2000))


def _run_several(recipes: Sequence[Recipe], intermediate_dir: Path | None, options: dict[str, Any]) -> None:
    from merge_models.merge.api.several import run_recipes
    from merge_models.merge.cli.progress import Progress

    recipes = with_rounding(options, recipes)
    if review_asked_for(options):
        raise MergeError("--eval judges a file's only recipe; for several, run merge-models eval afterwards")
    quiet, verbose, out = options.pop("quiet"), options.pop("verbose"), options.pop("out")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            _tell_plan(prepared, options, quiet, verbose)
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
