"""The demo: three experts and their base, merged with every strategy, each result scored on each skill."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from merge_models.merge.api.merging import merge
from merge_models.merge.demo.skills import SKILLS, demo_folder, score
from merge_models.merge.strategies import STRATEGIES, AbstractStrategy, TaskArithmetic

EXPERTS = ("sorting", "reversing", "adding")
_SPARSE = ("ties", "dare_linear", "dare_ties", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties")
_SUMMED = ("task_arithmetic", "dare_linear", "dare_ties", "della_linear", "breadcrumbs", "breadcrumbs_ties")
_PROMPTS = 60
"""Held-out prompts of each skill: a score is then within about 12 points of what thousands would give."""


@dataclass(frozen=True)
class Row:
    """One line of the demo's table."""

    name: str
    scores: dict[str, float]

    @property
    def mean(self) -> float:
        return sum(self.scores.values()) / len(self.scores)


def run_demo(folder: Path, show: Callable[[str], None]) -> list[Row]:
    """Merges and scores; shows each row as it is ready.

    Args:
        folder: gets the merged models, each in a folder named after its strategy.
        show: prints a line.

    Returns:
        The table's rows: the base, the experts, then every strategy.
    """
    started = time.monotonic()
    width = max(len(strategy.name) for strategy in STRATEGIES) + 2
    header = "".join(f"{skill:>11}" for skill in SKILLS)
    show(f"{'':{width}}{header}{'mean':>11}")
    rows = []
    for name in ("base", *EXPERTS):
        rows.append(_show_row(Row(name, _score(demo_folder(name))), width, show))
    show("")
    for kind in STRATEGIES:
        out = folder / kind.name
        label = _merge_experts(kind, out)
        rows.append(_show_row(Row(label, _score(out)), width, show))
    show("")
    show(f"share of held-out prompts answered exactly; {time.monotonic() - started:.0f} s")
    show("(1), (2): merges the first experts only, as many as the method takes")
    show("lambda is 0.5 where a method adds deltas up, density 0.5 where it thins them; else defaults")
    return rows


def overdo(folder: Path) -> Path:
    """Returns a merge that collapses: the experts' deltas added up four times too strongly. Returns its
    folder."""
    out = folder / "overdone"
    experts = [demo_folder(name) for name in EXPERTS]
    merge(experts, TaskArithmetic(lambda_=4.0), base=demo_folder("base"), out=out, overwrite=True)
    return out


def _merge_experts(kind: type[AbstractStrategy], out: Path) -> str:
    """Merges the experts into ``out``; returns the row's label."""
    high = kind.parents[1]
    experts: Sequence[str] = EXPERTS if high is None or high >= 3 else EXPERTS[:high]
    settings: dict[str, float] = {"density": 0.5} if kind.name in _SPARSE else {}
    settings |= {"lambda_": 0.5} if kind.name in _SUMMED else {}
    base = None if not kind.base_model.is_origin else demo_folder("base")
    merge([demo_folder(name) for name in experts], kind(**settings), base=base, out=out, overwrite=True)
    return kind.name if len(experts) == len(EXPERTS) else f"{kind.name} ({len(experts)})"


def _score(folder: Path) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(1)  # in models this small, threads wait ten times as long as they work
    model = AutoModelForCausalLM.from_pretrained(folder)
    return score(model.float().eval(), AutoTokenizer.from_pretrained(folder), _PROMPTS)


def _show_row(row: Row, width: int, show: Callable[[str], None]) -> Row:
    cells = "".join(f"{row.scores[skill]:>10.0%} " for skill in SKILLS)
    show(f"{row.name:{width}}{cells}{row.mean:>10.0%}")
    return row
