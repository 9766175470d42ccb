"""``--eval`` of the commands that merge: what can be judged, and the judgement."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.evals.commands import Review
from merge_models.merge.errors import MergeError

if TYPE_CHECKING:
    from merge_models.merge.preparation import Prepared


def review_asked_for(options: dict[str, Any]) -> Review | None:
    """What ``--eval`` asks for, taken out of the options."""
    wanted, data = options.pop("evaluates"), options.pop("data")
    outlets, fail_on = options.pop("report"), options.pop("fail_on")
    if wanted:
        return Review(data, outlets, fail_on, quiet=options["quiet"])
    if outlets or fail_on:
        raise click.UsageError(f"--{'report' if outlets else 'fail-on'} needs --eval")
    return None


def check_reviewable(prepared: Prepared) -> None:
    """Evaluation loads the parents as they stand: adapters must be merged, and pickles converted, before."""
    from merge_models.merge.checkpoint.pickled import is_pickled
    from merge_models.merge.checkpoint.source import Checkpoint

    for _, model in prepared.roles():
        if any(map(is_pickled, model.files)):
            raise MergeError(
                f"--eval cannot load the pickled weights of {model.label}: convert them first"
                " (merge-models merge MODEL -m passthrough --allow-pickle -o OUT)"
            )
        if not isinstance(model, Checkpoint):
            raise MergeError(
                f"--eval cannot load {model.label} with its adapter: merge it into its model first"
                " (merge-models merge MODEL+ADAPTER -m passthrough -o OUT)"
            )


def judgement(review: Review, folder: Path, name: str, prepared: Prepared) -> str:
    """The section for the model card of a finished folder that is to be published as ``name``."""
    from merge_models.evals.lineage import recipe_weights

    models = {role: [m.path for r, m in prepared.roles() if r == role] for role in ("parent", "base")}
    parents = models["parent"] or models["base"]
    weights = recipe_weights(prepared.recipe.document())
    return review.judge(
        folder,
        name,
        parents,
        next(iter(models["base"]), None),
        weights if weights and len(weights) == len(parents) else None,
    )
