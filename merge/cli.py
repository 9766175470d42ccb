"""The command line: parse, call the API, print. Anything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from merge_models.evals.commands import (
    Review,
    eval_command,
    inspect_command,
    repair_command,
    review_options,
)
from merge_models.merge.errors import MergeError, RecipeError, printable

if TYPE_CHECKING:
    from merge_models.merge.api import MergeResult, Prepared
    from merge_models.merge.recipe import Recipe


class _Group(click.Group):
    """One line and exit code 2 for every error that the user can cause."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        try:
            return super().make_context(*args, **extra)
        except click.UsageError as error:
            if type(error) is click.UsageError or isinstance(error, (click.BadParameter, click.NoSuchOption)):
                _fail_usage(error)
            raise  # no arguments at all: click shows the help

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _stoppable():
                return super().invoke(ctx)
        except MergeError as error:
            _fail(str(error))
        except click.UsageError as error:
            _fail_usage(error)
        except _Stopped as stopped:
            _leave("stopped", stopped, 128 + stopped.signal)
        except KeyboardInterrupt as interruption:
            _leave("interrupted", interruption, 130)
        except MemoryError:
            _fail("not enough memory; pass fewer --threads, or --max-memory SIZE")
        except BrokenPipeError:
            os._exit(1)


class _Stopped(KeyboardInterrupt):
    """A signal asked the process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP clean up as Ctrl-C does, unless someone else handles them."""

    def stop(number: int, frame: object) -> NoReturn:
        del frame
        raise _Stopped(number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    ours = [getattr(signal, name) for name in names] if _in_main_thread() else []
    ours = [number for number in ours if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _fail(message: str, code: int = 2) -> NoReturn:
    click.echo(f"Error: {printable(message, 2000)}", err=True)
    sys.exit(code)


def _leave(word: str, interruption: KeyboardInterrupt, code: int) -> NoReturn:
    """Says what is kept, and ends at once: a block in work may take minutes yet."""
    try:
        _fail(f"{word}; {interruption if interruption.args else 'nothing was published'}", code)
    finally:
        if threading.active_count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def _fail_usage(error: click.UsageError) -> NoReturn:
    command = error.ctx.command_path if error.ctx else "merge-models"
    _fail(f"{error.format_message().rstrip('.')} (see {command} --help)")


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="merge-models")
def main() -> None:
    """Merge neural-network checkpoints on the geometry that they live in.

    \b
    Example: merge-models merge ./math ./code -m linear -o ./merged
    """


_allow_pickle = click.option(
    "--allow-pickle", is_flag=True, help="Read files of torch.save too (.bin, .pt); no code in them is run."
)


def _write_options(command: Any) -> Any:
    options = [
        click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="Output folder."),
        click.option("--overwrite", is_flag=True, help="Replace a checkpoint that stands there."),
        click.option("--restart", is_flag=True, help="Begin anew; by default a stopped merge goes on."),
        click.option("--shard-size", default="5GB", show_default=True, help="Bytes per output file."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores]."),
        click.option("--max-memory", metavar="SIZE", help="Memory that the program may take, such as 2GB."),
        click.option(
            "--on-nonfinite",
            type=click.Choice(["error", "keep"]),
            default="error",
            show_default=True,
            help="What a NaN or Inf in a parent does.",
        ),
        click.option(
            "--rounding",
            type=click.Choice(["nearest", "stochastic"]),
            help="To formats narrower than float32 [default: the recipe's, or nearest].",
        ),
        click.option(
            "--input-digests",
            type=click.Choice(["fast", "strong"]),
            default="fast",
            show_default=True,
            help="What the manifest tells inputs by: XXH3, or BLAKE3 (slower, cannot be forged).",
        ),
        _allow_pickle,
        click.option("-q", "--quiet", is_flag=True, help="Print errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Print the plan, and figures by tensor."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _strategy_options(command: Any) -> Any:
    options = [
        click.argument("models", nargs=-1, required=True),
        click.option("-m", "--method", default="linear", show_default=True, help="Strategy."),
        click.option("--base", help="Base model: path or Hub id."),
        click.option("--weights", help="One weight per model: .5,.3,.2"),
        click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="A parameter."),
        click.option("--dtype", help="Output dtype [default: that of the models]."),
        click.option("--seed", default=0, show_default=True, help="Key of all randomness."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


@main.command()
@_strategy_options
@_write_options
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
    _run(_recipe(models, method, base, weights, settings, dtype, seed), options)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--intermediate-dir",
    type=click.Path(path_type=Path),
    help="Where the results of a file's earlier recipes go [default: OUT.intermediate].",
)
@_write_options
@review_options
def run(recipe: Path, intermediate_dir: Path | None, **options: Any) -> None:
    """Run a recipe: a YAML file in mergekit's dialect, with one recipe or several.

    \b
    Example: merge-models run recipe.yml -o OUT
    """
    from merge_models.merge.recipe import load_recipes

    with _naming(recipe):
        recipes = load_recipes(recipe)
        if len(recipes) == 1:
            _run(recipes[0], options)
        else:
            _run_several(recipes, intermediate_dir, options)


@contextmanager
def _naming(recipe: Path) -> Iterator[None]:
    """Puts the recipe's path before what is wrong with it."""
    try:
        yield
    except RecipeError as error:
        named = str(error).startswith(f"{recipe}: ")
        raise RecipeError(str(error) if named else f"{recipe}: {error}") from None


def _recipe(
    models: tuple[str, ...],
    method: str,
    base: str | None,
    weights: str | None,
    settings: tuple[str, ...],
    dtype: str | None,
    seed: int,
) -> Recipe:
    from merge_models.merge.recipe import parse_recipe

    shares = _weights(weights, len(models))
    parameters = dict(_setting(text) for text in settings)
    if shares and "weight" in parameters:
        raise RecipeError("--weights and --set weight both give weights; leave one out")
    entries = [
        {"model": model, "parameters": {"weight": share} if shares else {}}
        for model, share in zip(models, shares or [None] * len(models), strict=True)
    ]
    return parse_recipe(
        {
            "merge_method": method,
            "models": entries,
            "base_model": base,
            "parameters": parameters,
            "dtype": dtype,
            "seed": seed,
        },
        "command line",
    )


def _weights(text: str | None, count: int) -> list[float] | None:
    if text is None:
        return None
    try:
        values = [float(word) for word in text.replace(" ", "").split(",")]
    except ValueError:
        raise RecipeError(f"--weights '{text}' is not a list of numbers; write .5,.3,.2") from None
    if len(values) != count:
        raise RecipeError(f"--weights has {len(values)} values for {count} models; give one per model")
    return values


def _setting(text: str) -> tuple[str, Any]:
    from merge_models.merge.recipe import parse_yaml

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise RecipeError(f"--set '{text}' is not KEY=VALUE; write --set lambda=0.5")
    try:
        return key, parse_yaml(value)
    except RecipeError as error:
        raise RecipeError(f"--set '{text}': {error}") from None


def _run(recipe: Recipe, options: dict[str, Any]) -> None:
    from merge_models.merge.api import run_recipe
    from merge_models.merge.progress import Progress

    (recipe,) = _rounding(options, [recipe])
    review = _review(options)
    quiet, verbose = options.pop("quiet"), options.pop("verbose")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            if verbose and not quiet:
                click.echo(_plan_text(prepared))
            if review:
                _check_reviewable(prepared)
                review.check([model.path for role, model in prepared.roles() if role != "tokens"])
            progress.start(prepared.plan.bytes_out)

        def judge(folder: Path, prepared: Prepared) -> str:
            assert review is not None
            return _judge(review, folder, options["out"].name, prepared)

        result = run_recipe(
            recipe,
            progress=progress.advance,
            planned=planned,
            review=judge if review else None,
            **options,
        )
    if not quiet:
        _tell(result, verbose)
    if review:
        review.close()


def _review(options: dict[str, Any]) -> Review | None:
    """What ``--eval`` asks for, taken out of the options."""
    wanted, data = options.pop("evaluates"), options.pop("data")
    outlets, fail_on = options.pop("report"), options.pop("fail_on")
    if wanted:
        return Review(data, outlets, fail_on, quiet=options["quiet"])
    if outlets or fail_on:
        raise click.UsageError(f"--{'report' if outlets else 'fail-on'} needs --eval")
    return None


def _check_reviewable(prepared: Prepared) -> None:
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


def _judge(review: Review, folder: Path, name: str, prepared: Prepared) -> str:
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


def _run_several(recipes: Sequence[Recipe], intermediate_dir: Path | None, options: dict[str, Any]) -> None:
    from merge_models.merge.multi import run_recipes
    from merge_models.merge.progress import Progress

    recipes = _rounding(options, recipes)
    if _review(options):
        raise MergeError("--eval judges a file's only recipe; for several, run merge-models eval afterwards")
    quiet, verbose, out = options.pop("quiet"), options.pop("verbose"), options.pop("out")
    with Progress(quiet) as progress:

        def planned(prepared: Prepared) -> None:
            if verbose and not quiet:
                click.echo(_plan_text(prepared))
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
            _tell(step.result, verbose)


def _rounding(options: dict[str, Any], recipes: Sequence[Recipe]) -> list[Recipe]:
    """The recipes with the rounding that was asked for, which is part of what is made."""
    from merge_models.merge.recipe import with_options

    asked = options.pop("rounding")
    return [with_options(recipe, rounding=asked) if asked else recipe for recipe in recipes]


def _tell(result: MergeResult, verbose: bool) -> None:
    gigabytes, path = (result.bytes_read + result.bytes_written) / 1e9, printable(str(result.path), 2000)
    click.echo(f"{path}: {result.bytes_written / 1e9:.2f} GB written in {result.seconds:.1f} s", nl=False)
    click.echo(f" ({gigabytes / max(result.seconds, 1e-9):.2f} GB/s read and written)")
    if result.resumed:
        click.echo(f"  {result.resumed} tensors were finished by an earlier run, checked, and kept")
    for line in _figure_lines(result.figures, verbose):
        click.echo(printable(line, 2000))
    if result.rounded:
        click.echo(f"  {result.rounded}")


def _figure_lines(figures: dict[str, dict[str, Any]], verbose: bool) -> list[str]:
    """Medians and extremes of what the strategy told, or every tensor's."""
    if verbose:
        return [
            f"  {name}: " + ", ".join(f"{k} {_short(v)}" for k, v in f.items()) for name, f in figures.items()
        ]
    from merge_models.merge.survival import KEYS

    lines = []
    for key in dict.fromkeys(key for values in figures.values() for key in values if key not in KEYS):
        values = [f[key] for f in figures.values() if key in f]
        if all(isinstance(value, bool) for value in values):
            lines.append(f"  {key}: {sum(values)} of {len(values)} tensors")
        elif all(isinstance(value, (int, float)) for value in values):
            ordered = sorted(values)
            lines.append(f"  {key}: {_range(ordered[len(ordered) // 2], ordered[0], ordered[-1])}")
    return lines


def _range(middle: float, least: float, most: float) -> str:
    """``median M, A to B``, with as many digits as it takes to tell the three apart."""
    if least == most:
        return f"{_short(middle)} everywhere"
    three = {least, middle, most}
    digits = next((n for n in range(4, 17) if len({f"{x:.{n}g}" for x in three}) == len(three)), 17)
    spread = max(abs(least), abs(most))
    if digits > 6 and spread:  # nearly the same number: tell how far from it
        return f"{_short(middle)} everywhere to {(most - least) / spread:.1e} of it"
    return f"median {_short(middle, digits)}, {_short(least, digits)} to {_short(most, digits)}"


def _short(value: Any, digits: int = 4) -> str:
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


@main.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--shard-size", default="5GB", show_default=True, help="Bytes per output file.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
@_allow_pickle
def plan(recipe: Path, as_json: bool, shard_size: str, threads: int | None, allow_pickle: bool) -> None:
    """Show what a recipe would do, from headers alone; nothing is written.

    \b
    Example: merge-models plan recipe.yml --json
    """
    from merge_models.merge.api import default_threads
    from merge_models.merge.multi import plan_recipes, targets
    from merge_models.merge.recipe import load_recipes

    workers = threads or default_threads()
    with _naming(recipe):
        recipes = load_recipes(recipe)
        places = targets(recipes, Path("OUT"))
        with plan_recipes(recipes, places, shard_size, allow_pickle=allow_pickle) as plans:
            documents = [_plan_document(prepared, workers) for prepared in plans]
            texts = [_plan_text(prepared, workers) for prepared in plans]
    if as_json:
        click.echo(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2))
    else:
        click.echo("\n".join(texts))


def _plan_document(prepared: Prepared, threads: int) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "recipe": prepared.recipe.document(),
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "dtype": t.dtype.torch_name,
                "action": t.action,
                "strategy": t.strategy.name if t.strategy else None,
                "note": t.note,
            }
            for t in plan.tensors
        ],
        "dropped": [{"tensor": n, "model": m, "reason": r} for n, m, r in plan.dropped],
        "files": [{"name": s.name, "bytes": s.nbytes} for s in prepared.layout.shards],
        "copied_files": list(prepared.sidecars.copied),
        "left_files": [{"name": n, "reason": r} for n, r in prepared.sidecars.left],
        "donor": prepared.donor.label,
        "tokenizer": _tokenizer_of(prepared),
        "differs_from_mergekit": list(plan.notes),
        "bytes_in": plan.bytes_in,
        "bytes_out": plan.bytes_out,
        "parameters": plan.parameters,
        "threads": threads,
        "memory_bytes": prepared.memory(threads).total,
        "memory_bytes_one_thread": replace(prepared.memory(1), held=0).total,
        "disk_bytes": sum(shard.nbytes for shard in prepared.layout.shards),
    }


def _tokenizer_of(prepared: Prepared) -> dict[str, Any] | None:
    """What is told of a tokenizer that is made, not copied."""
    made = prepared.alignment
    return made and {"source": made.source, "tokens": len(made.ids), "rows": made.rows}


def _plan_text(prepared: Prepared, threads: int = 1) -> str:
    plan, recipe = prepared.plan, prepared.recipe
    merged = [t for t in plan.tensors if t.action == "merge"]
    copied = [t for t in plan.tensors if t.action == "copy"]
    disk = sum(shard.nbytes for shard in prepared.layout.shards)
    lines = [f"{recipe.merge_method}: {len(prepared.models)} models, {plan.parameters:,} parameters"]
    for role, model in prepared.roles():
        donates = " (config and tokenizer from here)" if model is prepared.donor else ""
        lines.append(
            f"  {role:6} {model.label}: {len(model.tensors)} tensors, {model.nbytes / 1e9:.3f} GB{donates}"
        )
    dtypes = ", ".join(sorted({t.dtype.torch_name for t in plan.tensors}))
    lines.append(f"  merged {len(merged)} tensors; written as {dtypes}")
    lines += [f"  merged {t.name}: {t.note}" for t in merged if t.note]
    lines += [f"  copied {t.name}: {t.note}" for t in copied]
    lines += [f"  dropped {name} of {model}: {reason}" for name, model, reason in plan.dropped]
    tokenizer = _tokenizer_of(prepared)
    if tokenizer:
        lines.append(
            f"  tokenizer {tokenizer['source']}: {tokenizer['tokens']} tokens, {tokenizer['rows']} rows"
        )
    if prepared.sidecars.copied:
        lines.append(f"  files  {', '.join(prepared.sidecars.copied)}")
    lines += [f"  left   {name}: {reason}" for name, reason in prepared.sidecars.left]
    lines += [f"  differs from mergekit: {note}" for note in plan.notes]
    lines.append(
        f"  reads {plan.bytes_in / 1e9:.3f} GB a pass, writes {disk / 1e9:.3f} GB"
        f" in {len(prepared.layout.shards)} file(s)"
    )
    need, least = prepared.memory(threads), replace(prepared.memory(1), held=0)
    lines.append(
        f"  memory {need.total / 1e6:.0f} MB at most with {threads} thread(s), {least.total / 1e6:.0f} MB at"
        " least (--max-memory), beyond the program itself"
    )
    return "\n".join(printable(line, 2000) for line in lines)


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--inputs", is_flag=True, help="Also compare the inputs that were read.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
def verify(out: Path, inputs: bool, threads: int | None) -> None:
    """Compare every byte of a merge's output with its manifest; exits 1 where something has changed.

    \b
    Example: merge-models verify OUT --inputs
    """
    from merge_models.merge.api import default_threads
    from merge_models.merge.verify import verify as compare

    found = compare(out, inputs=inputs, threads=threads or default_threads())
    _conclude(
        found.problems,
        f"{out}: {found.tensors} tensors and {found.files} files are as they were written"
        f"{' and read' if inputs else ''} ({found.bytes / 1e9:.2f} GB)",
    )


@main.command()
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--scratch", type=click.Path(path_type=Path), help="Where to merge [default: temporary folder]."
)
@click.option("--threads", type=click.IntRange(1, 1024), help="Workers [default: cores].")
def reproduce(out: Path, scratch: Path | None, threads: int | None) -> None:
    """Run a merge again from its manifest and compare the bytes; exits 1 where they differ.

    \b
    Example: merge-models reproduce OUT
    """
    from merge_models.merge.reproduce import reproduce as run_again

    made = run_again(out, scratch=scratch, threads=threads)
    for line in made.other_versions:
        click.echo(printable(f"note: made with {line}", 2000))
    _conclude(made.differences, f"{out}: {made.tensors} tensors and all other files came out the same")


def _conclude(problems: Sequence[str], verdict: str) -> None:
    """Prints what was found wrong and exits 1, or that nothing was."""
    for line in problems:
        click.echo(line)
    if problems:
        sys.exit(1)
    click.echo(printable(verdict, 2000))


@main.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def methods(name: str | None, as_json: bool) -> None:
    """List the strategies, or one strategy's parameters.

    \b
    Example: merge-models methods task_arithmetic
    """
    from merge_models.merge.methods import describe, describe_all

    click.echo(describe(name, as_json) if name else describe_all(as_json))


@main.command()
@click.option("--keep", type=click.Path(path_type=Path), help="Leave the merged models in this folder.")
@click.option("--report", type=click.Path(path_type=Path), help="Write the reports as one .html page.")
def demo(keep: Path | None, report: Path | None) -> None:
    """Merge three tiny trained experts with every strategy, score each result, and judge two.

    \b
    Example: merge-models demo --report demo.html
    """
    import tempfile

    from merge_models.evals.outlets import check_outlets
    from merge_models.merge.demo.run import overdo, run_demo

    check_outlets([report] if report else [])
    with tempfile.TemporaryDirectory(prefix="merge-models-demo-") as scratch:
        folder = keep or Path(scratch)
        run_demo(folder, click.echo)
        click.echo("\nmerge-models eval, of a merge that keeps much of each skill,")
        click.echo("and of deltas added up four times too strongly:")
        _judge_demo([folder / "task_arithmetic", overdo(folder)], Path(scratch), report)


def _judge_demo(merges: Sequence[Path], scratch: Path, report: Path | None) -> None:
    from merge_models.evals.commands import tell
    from merge_models.evals.evaluation import evaluate
    from merge_models.evals.outlets import write_outlets
    from merge_models.evals.report.comparison import compare
    from merge_models.evals.tasks import TaskSettings
    from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out, solved

    text, questions = scratch / "solved.jsonl", scratch / "questions.jsonl"
    rows = [{"domain": f"{name} (text)", "text": line} for name in SKILLS for line in solved(name, 150)]
    text.write_text("\n".join(map(json.dumps, rows)))
    items = [
        {"task": name, "prompt": prompt, "answer": skill.answer(prompt)}
        for name, skill in SKILLS.items()
        for prompt in held_out(name, 60)
    ]
    questions.write_text("\n".join(map(json.dumps, items)))
    experts, base = [demo_folder(name) for name in SKILLS], demo_folder("base")
    # Trained on answers alone, they are at a loss on running text: perplexity and continuations say nothing.
    tasks = TaskSettings(files=(questions,), perplexity_tokens=0, continuations=0)
    evaluations = [
        evaluate(merge, experts, base, data=text, tokens=2048, length=32, tasks=tasks) for merge in merges
    ]
    for evaluation in evaluations:
        tell(evaluation)
    if report:
        write_outlets(compare(evaluations), [report])
        click.echo(f"report: {printable(str(report), 2000)}")


for _command in (eval_command, inspect_command, repair_command):
    main.add_command(_command)


if __name__ == "__main__":
    main()
