"""A merge to disk: staged, digested, noted, published."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.digest import Kinds, digest_bytes, digest_file
from merge_models.merge.checkpoint.manifest import described, sealed
from merge_models.merge.checkpoint.outputs.journal import binding_digest
from merge_models.merge.checkpoint.outputs.staging import MANIFEST, Staging, free_space, staged_bytes
from merge_models.merge.contract.kernel import Figures
from merge_models.merge.errors import ChangedError, MergeError, PlanError, RecipeError
from merge_models.merge.publishing.card import REVIEW_MARK, manifest, model_card
from merge_models.merge.publishing.identity import Names
from merge_models.merge.publishing.prepared import Prepared
from merge_models.merge.publishing.staged import StagedOutput
from merge_models.merge.running.engines import execute
from merge_models.merge.running.options import RunOptions
from merge_models.merge.running.scheduler import is_finished
from merge_models.merge.sizes import shown_size


def check_space(target: Path, prepared: Prepared) -> None:
    needed = sum(shard.nbytes for shard in prepared.layout.shards) - staged_bytes(target, prepared.layout)
    free = free_space(target)
    if free is not None and needed > free:
        raise PlanError(
            f"output {target}: needs {shown_size(needed, 'up')} of disk, {shown_size(free, 'down')} is free;"
            " make room or choose another disk"
        )


class Writing:
    """One merge to disk: staged, digested, noted, published.

    Attributes:
        resumed: how many tensors an earlier run had finished.
    """

    def __init__(
        self,
        prepared: Prepared,
        target: Path,
        overwrite: bool,
        before: tuple[Names, ...],
        kinds: Kinds,
        review: Callable[[Path, Prepared], str] | None,
    ) -> None:
        self._prepared, self._before, self._review = prepared, before, review
        self._binding = prepared.binding()
        self._staging = Staging(target, prepared.layout, overwrite)
        self._output = StagedOutput(self._staging, prepared.plan, kinds)
        self.resumed = 0

    def run(self, options: RunOptions, restart: bool) -> dict[str, Figures]:
        """Goes on or begins; returns what is told of tensors.

        Raises:
            MergeError: anything fails; what was finished is kept for the next run.
        """
        records = self._staging.begin(self._binding, restart)
        try:
            self._staging.allocate()
            finished = self._output.recover(records, options.threads)
            self.resumed = len(finished)
            if options.progress:
                for task in self._prepared.plan.tasks:
                    options.progress(task.bytes_out if is_finished(task, finished) else 0)
            options = replace(options, finished=finished, watch=self._output.watch)
            before = dict(self._output.figures)
            figures = {**execute(self._prepared.plan, self._output, options), **before}
            self._on_nonfinite = options.on_nonfinite
            self._check_inputs()
            self._write_small_files(options.threads)
            self._check_inputs()
            self._staging.publish()
        except BaseException as failure:
            self._leave(failure, len(records))
            raise
        names = [output.name for output in self._prepared.plan.outputs()]
        return {name: figures[name] for name in names if name in figures}

    def _check_inputs(self) -> None:
        for _, model in self._prepared.roles():
            model.check_unchanged()

    def _leave(self, failure: BaseException, noted: int) -> None:
        """Keeps what is finished and says so in the failure's text; cleans up where nothing is."""
        done = max(len(self._output.digests), noted)
        never = isinstance(failure, (PlanError, RecipeError, ChangedError))  # will not go on
        is_published = self._staging.is_published
        if not done or never or is_published:
            self._staging.discard()
            if isinstance(failure, KeyboardInterrupt):
                failure.args = ("the output is complete" if is_published else "nothing was published",)
            return
        self._staging.close()
        hint = (
            f"{done} of {len(self._prepared.plan.outputs())} tensors are finished and kept in"
            f" {self._staging.home.name}: the same command goes on from there, or from the start with"
            " --restart (restart=True)"
        )
        if isinstance(failure, (MergeError, KeyboardInterrupt)):
            failure.args = (f"{failure}; {hint}" if str(failure) else hint,)

    def _write_small_files(self, threads: int) -> None:
        prepared, staging = self._prepared, self._staging
        prepared.target.write_files(prepared, staging)
        staging.write_index()
        every = [*self._before, prepared.names]
        repositories = [
            part.repository for names in every for part in names.parts.values() if part.repository
        ]
        library = _library(prepared.config(), staging.folder)
        card = model_card([names.public for names in every], prepared.relatives, repositories, library)
        if self._review is not None:
            review = self._review(staging.folder, prepared).strip()
            card = f"{card.rstrip()}\n\n{REVIEW_MARK}\n\n{review}\n"
        staging.write_text("README.md", card)
        staging.write_text(MANIFEST, sealed(self._record(threads)))

    def _record(self, threads: int) -> dict[str, Any]:
        """The manifest, all but its seal."""
        prepared, staging = self._prepared, self._staging
        read = self._output.complete(threads)
        roles, shares, figures = prepared.roles(), prepared.shares(), self._output.figures
        record = manifest(prepared.names, prepared.plan, prepared.layout, roles, shares, figures, read)
        if self._before:
            record["earlier_recipes"] = [names.located.document() for names in self._before]
            parts = {text: part for names in self._before for text, part in names.parts.items()}
            record["models"] = {**described(parts), **record["models"]}
        record["options"] = {"on_nonfinite": self._on_nonfinite, "allow_pickle": prepared.allow_pickle}
        record["output"]["shard_size"] = prepared.shard_size
        record["output"]["kind"] = prepared.target.name
        record["digest"] = binding_digest(self._binding)
        record["digests"] = {
            "headers": {shard.name: digest_bytes(shard.header) for shard in prepared.layout.shards},
            "files": {name: digest_file(staging.folder / name) for name in staging.small_files()},
            "tensors": {t.name: self._output.digests[t.name] for t in prepared.plan.outputs()},
        }
        return record


def _library(config: Mapping[str, Any], folder: Path) -> str | None:
    """What hubs shall say loads the output."""
    if (folder / "modules.json").is_file():
        return "sentence-transformers"
    return "transformers" if config.get("architectures") else None
