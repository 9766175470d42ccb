"""Tasks of EleutherAI's lm-evaluation-harness, run on the model that is in memory (extra ``lm-eval``)."""

from __future__ import annotations

import importlib
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from merge_models.evals.measures.tasks.resample import Marks
from merge_models.evals.schema import Estimate
from merge_models.merge.errors import MergeError, printable

_INSTALL = 'lm-evaluation-harness is not installed; pip install "merge-models[lm-eval]"'
_NAME = re.compile(r"[A-Za-z0-9][\w.\-]{0,120}")
_Z = 1.96


class Result(NamedTuple):
    """One metric of one task.

    Attributes:
        marks: item by item, where the score is the mean over items.
        estimate, n: score, its interval by the harness's standard error where it has one, and items.
        higher_is_better: None where the harness does not say.
    """

    task: str
    metric: str
    estimate: Estimate
    n: int
    higher_is_better: bool | None
    marks: Marks | None


def check_harness(tasks: Sequence[str]) -> None:
    """Checks, before any model is loaded, that the harness is there and that these can be names of its tasks.

    Raises:
        MergeError: it is not installed, or a name is a path or no name.
    """
    for task in tasks:
        if not _NAME.fullmatch(task):
            raise MergeError(
                f"'{printable(task)}' is no name of an lm-eval task; names stand in 'lm_eval --tasks list'"
            )
    _harness()


def run_harness(
    model: Any, tokenizer: Any, tasks: Sequence[Any], *, limit: int | None, seed: int
) -> list[Result]:
    """Scores of the tasks, in the harness's own order.

    Raises:
        MergeError: the harness fails: it does not know a task, or cannot fetch its data.
    """
    harness, adapter = _harness()
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        results = harness.simple_evaluate(
            model=adapter(pretrained=model, tokenizer=tokenizer, batch_size=8, backend="causal"),
            tasks=list(tasks),
            limit=limit,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except MergeError:
        raise
    except Exception as error:  # whatever its many tasks and their data sets raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MergeError(
            f"lm-eval cannot run {printable(', '.join(map(str, tasks)))} ({printable(reason, 200)}); check"
            " the names with 'lm_eval --tasks list', and that their data can be fetched"
        ) from None
    finally:
        logging.disable(level)
    return list(_results(results))


def _harness() -> tuple[Any, Any]:
    try:
        return (
            importlib.import_module("lm_eval"),
            importlib.import_module("lm_eval.models.huggingface").HFLM,
        )
    except ImportError as error:
        missing = getattr(error, "name", None) or "lm_eval"
        if missing.partition(".")[0] == "lm_eval":
            raise MergeError(_INSTALL) from None
        raise MergeError(f"{_INSTALL} (it lacks '{printable(missing)}')") from None


def _results(found: Mapping[str, Any]) -> Iterator[Result]:
    """Every number of every task (not of groups, which are means of tasks)."""
    for task, metrics in found["results"].items():
        samples = found.get("samples", {}).get(task)
        if samples is None:
            continue
        for key, value in metrics.items():
            metric, _, chosen = key.partition(",")
            if not chosen or metric.endswith("_stderr") or not _is_number(value):
                continue
            better = found.get("higher_is_better", {}).get(task, {}).get(metric)
            error = metrics.get(f"{metric}_stderr,{chosen}")
            spread = _Z * float(error) if _is_number(error) else None
            marks = _marks(samples, metric, chosen, float(value), better)
            estimate = Estimate(
                value=float(value),
                low=None if spread is None else float(value) - spread,
                high=None if spread is None else float(value) + spread,
            )
            name = metric if chosen == "none" else f"{metric} ({chosen})"
            yield Result(printable(task, 60), printable(name, 60), estimate, len(samples), better, marks)


def _marks(
    samples: Sequence[Mapping[str, Any]], metric: str, chosen: str, value: float, better: bool | None
) -> Marks | None:
    """The items' own values, where the score is their mean."""
    own = [s.get(metric) for s in samples if s.get("filter", chosen) == chosen]
    values = np.array([float(v) for v in own if _is_number(v)])
    if better is None or len(values) < len(own) or not len(own):
        return None
    if not math.isclose(float(values.mean()), value, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return Marks(values, np.ones(len(values)), metric, better)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float, np.floating, np.integer)) and math.isfinite(value)
