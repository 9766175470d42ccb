"""``--eval`` of the commands that merge: a merge is judged before it is published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from merge_models.merge.cli.options import PATH, fail_on_option
from merge_models.merge.cli.verdicts import exit_by_verdict, say, tell, tell_outlets

if TYPE_CHECKING:
    from merge_models.evals.schema import Evaluation
    from merge_models.merge.publishing.prepared import Prepared


def review_options(command: Any) -> Any:
    """``--eval`` and what goes with it, for commands that merge."""
    options = [
        click.option("--eval", "evaluates", is_flag=True, help="Judge the merge; the verdict ends the card."),
        click.option("--data", default="built-in", show_default=True, help="--eval: calibration text."),
        click.option("--report", multiple=True, type=PATH, help="--eval: write .html, .json or .md."),
        fail_on_option,
    ]
    for option in reversed(options):
        command = option(command)
    return command


class Review:
    """Judges a finished merge before it is published.

    Args:
        data: calibration text.
        outlets: reports to write.
        fail_on: the verdict from which on the process ends with 3.
        allow_pickle: whether parents may be files of ``torch.save``.
        quiet: print errors only.
    """

    def __init__(
        self, data: str, outlets: Sequence[Path], fail_on: str | None, *, allow_pickle: bool, quiet: bool
    ) -> None:
        from merge_models.evals.report.outlets import check_outlets

        check_outlets(outlets)
        self._data, self._outlets, self._fail_on = data, outlets, fail_on
        self._allow_pickle, self._quiet = allow_pickle, quiet
        self._evaluation: Evaluation | None = None

    def check(self, prepared: Prepared) -> None:
        """Raises ``MergeError`` for text or tokenizers that would stop the evaluation after the merge."""
        from merge_models.evals.inputs.calibration import (
            calibration_batches,
            check_same_tokenizer,
            read_calibration,
        )
        from merge_models.evals.inputs.positions import LENGTH, fitting_length

        models = [*_references(prepared, "parent"), *_references(prepared, "base")]
        text = read_calibration(self._data)
        pickles = self._allow_pickle
        tokenizer = check_same_tokenizer(models, text, "leave out --eval", allow_pickle=pickles)
        length, _ = fitting_length(models, LENGTH, allow_pickle=pickles)
        calibration_batches(tokenizer, source=text, length=length)

    def judge(self, folder: Path, name: str, prepared: Prepared) -> str:
        """The section for the model card of a finished folder that is to be published as ``name``."""
        from merge_models.evals.evaluation import evaluate
        from merge_models.evals.inputs.settings import Merged, Running, TextSample
        from merge_models.merge.planning.parentage import origins

        shares = [own.share for own in prepared.relatives if own.role == "parent"]
        known = [share for share in shares if share is not None]
        named = list(zip(prepared.relatives, origins(prepared.plan), strict=True))
        ordered = [names for role in ("parent", "base") for own, names in named if own.role == role]
        from merge_models.evals.report import to_markdown

        self._evaluation = evaluate(
            Merged(folder, name, ordered if prepared.plan.is_renamed else None),
            _references(prepared, "parent"),
            next(iter(_references(prepared, "base")), None),
            weights=known if len(known) == len(shares) else None,
            text=TextSample(self._data),
            running=Running(
                allow_pickle=self._allow_pickle, progress=(lambda line: None) if self._quiet else say
            ),
        )
        return to_markdown(self._evaluation)

    def close(self) -> None:
        """Writes the reports, tells the verdict, and ends the process with 3 if it is too bad."""
        from merge_models.evals.report.outlets import write_outlets

        if self._evaluation is None:
            return
        write_outlets(self._evaluation, self._outlets)
        if not self._quiet:
            tell(self._evaluation)
            tell_outlets(self._outlets)
        exit_by_verdict([self._evaluation.verdict] if self._evaluation.verdict else [], self._fail_on)


def review_asked_for(options: dict[str, Any]) -> Review | None:
    """What ``--eval`` asks for, taken out of the options."""
    wanted, data = options.pop("evaluates"), options.pop("data")
    outlets, fail_on = options.pop("report"), options.pop("fail_on")
    if wanted:
        allow_pickle, quiet = options["allow_pickle"], options["quiet"]
        return Review(data, outlets, fail_on, allow_pickle=allow_pickle, quiet=quiet)
    if outlets or fail_on:
        raise click.UsageError(f"--{'report' if outlets else 'fail-on'} needs --eval")
    return None


def _references(prepared: Prepared, role: str) -> list[str]:
    """What evaluation finds the models of a role by: their paths, adapters behind a plus."""
    return ["+".join(map(str, model.paths)) for own, model in prepared.roles() if own == role]
