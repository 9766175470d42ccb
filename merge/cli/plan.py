"""The command ``plan``, and a plan as text and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import allow_pickle_option, max_memory_option
from merge_models.merge.cli.recipes import naming
from merge_models.merge.errors import counted, printable
from merge_models.merge.sizes import shown_size

if TYPE_CHECKING:
    from merge_models.merge.publishing.prepared import Prepared
    from merge_models.merge.running.memory import Budget


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--shard-size", default="5GB", show_default=True, help="Bytes per output file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
@max_memory_option
@allow_pickle_option
def plan(
    recipe: Path,
    as_json: bool,
    shard_size: str,
    threads: int | None,
    max_memory: str | None,
    allow_pickle: bool,
) -> None:
    """Show what a recipe would do, from headers alone; nothing is written.

    \b
    Example: merge-models plan recipe.yml --json
    """
    from merge_models.merge.api.several import plan_recipes, targets
    from merge_models.merge.recipes.recipe import load_recipes

    with naming(recipe):
        recipes = load_recipes(recipe)
        places = targets(recipes, Path("OUT"))
        with plan_recipes(recipes, places, shard_size, allow_pickle=allow_pickle) as plans:
            takes = [memory_of(prepared, threads, max_memory) for prepared in plans]
            documents = [plan_document(*pair) for pair in zip(plans, takes, strict=True)]
            texts = [plan_text(*pair) for pair in zip(plans, takes, strict=True)]
    if as_json:
        click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        click.echo("\n".join(texts))


def memory_of(prepared: Prepared, threads: int | None, max_memory: str | None) -> Budget:
    """What running a plan will take, with the options that ``run`` has.

    Raises:
        MergeError: ``max_memory`` is no size, or too small.
    """
    from merge_models.merge.checkpoint.threads import default_threads
    from merge_models.merge.running.memory import budget
    from merge_models.merge.sizes import parse_size

    limit = None if max_memory is None else parse_size(max_memory, "memory")
    return budget(prepared.plan, threads or default_threads(), limit)


def plan_document(prepared: Prepared, memory: Budget) -> dict[str, Any]:
    """A plan as JSON holds it."""
    plan = prepared.plan
    return {
        "recipe": prepared.recipe.document(),
        "tensors": [
            {
                "name": spec.name,
                "shape": list(spec.shape),
                "dtype": spec.dtype.torch_name,
                "action": "copy" if task.is_copied else task.action,
                "strategy": task.strategy.name if task.strategy and not task.is_copied else None,
                "note": task.note,
            }
            for task in plan.tasks
            for spec in task.outputs
        ],
        "dropped": [{"tensor": n, "model": m, "reason": r} for n, m, r in plan.dropped],
        "files": [{"name": s.name, "bytes": s.nbytes} for s in prepared.layout.shards],
        "copied_files": list(prepared.sidecars.copied),
        "left_files": [{"name": n, "reason": r} for n, r in prepared.sidecars.left],
        "donor": prepared.donor.label,
        "tokenizer": _tokenizer_of(prepared),
        "differs_from_mergekit": list(plan.notes),
        "remarks": list(plan.remarks),
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "parameters": plan.parameters,
        "threads": memory.need.threads,
        "memory_bytes": memory.total,
        "memory_bytes_least": memory.least,
        "memory_bytes_program": memory.program,
        "disk_bytes": sum(shard.nbytes for shard in prepared.layout.shards),
    }


def _tokenizer_of(prepared: Prepared) -> dict[str, Any] | None:
    """What is told of a tokenizer that is made, not copied."""
    made = prepared.alignment
    return made and {"source": made.source, "tokens": len(made.ids), "rows": made.rows}


def plan_text(prepared: Prepared, memory: Budget) -> str:
    """A plan as lines to read."""
    plan, recipe = prepared.plan, prepared.recipe
    merged = [t for t in plan.tasks if not t.is_copied]
    taken = [t for t in plan.tasks if t.is_taken]
    copied = [t for t in plan.tasks if t.is_copied and not t.is_taken]
    disk = sum(shard.nbytes for shard in prepared.layout.shards)
    lines = [
        f"{recipe.merge_method}: {counted(len(prepared.models), 'model')},"
        f" {counted(plan.parameters, 'parameter')}"
    ]
    for role, model in prepared.roles():
        donates = " (config and tokenizer from here)" if model is prepared.donor else ""
        lines.append(
            f"  {role:6} {model.label}: {counted(len(model.tensors), 'tensor')},"
            f" {shown_size(model.nbytes)}{donates}"
        )
    dtypes = ", ".join(sorted({t.dtype.torch_name for t in plan.tasks}))
    lines.append(f"  merged {counted(len(merged), 'tensor')}; written as {dtypes}")
    lines += [f"  merged {t.name}: {t.note}" for t in merged if t.note]
    for (model, note), count in Counter((t.parents[0].model, t.note) for t in taken).items():
        lines.append(f"  copied {counted(count, 'tensor')} of {plan.models[model].label}, {note}")
    lines += [f"  copied {t.name}: {t.note}" for t in copied]
    lines += [f"  dropped {name} of {model}: {reason}" for name, model, reason in plan.dropped]
    tokenizer = _tokenizer_of(prepared)
    if tokenizer:
        lines.append(
            f"  tokenizer {tokenizer['source']}: {counted(tokenizer['tokens'], 'token')},"
            f" {counted(tokenizer['rows'], 'row')}"
        )
    if prepared.sidecars.copied:
        lines.append(f"  files  {', '.join(prepared.sidecars.copied)}")
    lines += [f"  left   {name}: {reason}" for name, reason in prepared.sidecars.left]
    lines += [f"  differs from mergekit: {note}" for note in plan.notes]
    lines += [f"  note   {remark}" for remark in plan.remarks]
    lines.append(
        f"  reads {shown_size(plan.bytes_in)} a pass, writes {shown_size(disk)}"
        f" in {counted(len(prepared.layout.shards), 'file')}"
    )
    lines.append(
        f"  memory {shown_size(memory.total, 'up')} at most with {counted(memory.need.threads, 'thread')},"
        f" {shown_size(memory.least, 'up')} at least (--max-memory), {shown_size(memory.program, 'up')} of it"
        " for the program itself"
    )
    return "\n".join(printable(line, 2000) for line in lines)
