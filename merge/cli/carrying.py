"""What ``merge`` and ``run`` share: a recipe is planned, told, carried out, and judged if asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.plan import memory_of, plan_text
from merge_models.merge.cli.recipes import with_rounding
from merge_models.merge.cli.results import tell_result
from merge_models.merge.cli.reviews import review_asked_for
from merge_models.merge.errors import printable

if TYPE_CHECKING:
    from merge_models.merge.publishing.prepared import Prepared
    from merge_models.merge.recipes.recipe import Recipe


def carry_out(recipe: Recipe, options: dict[str, Any]) -> None:
    """Runs one recipe with the options of ``merge`` and ``run``, and tells what came of it."""
    from merge_models.merge.api.running import write_recipe
    from merge_models.merge.cli.progress import Progress

    (recipe,) = with_rounding(options, [recipe])
    review = review_asked_for(options)
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            tell_plan(prepared, options, quiet, verbose)
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


def tell_plan(prepared: Prepared, options: dict[str, Any], quiet: bool, verbose: bool) -> None:
    """Prints what a recipe's author may not expect, or the whole plan."""
    if quiet:
        return
    if verbose:
        click.echo(plan_text(prepared, memory_of(prepared, options["threads"], options["max_memory"])))
    else:
        for remark in prepared.plan.remarks:
            click.echo(printable(f"note: {remark}", 2000))
