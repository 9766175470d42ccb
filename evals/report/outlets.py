"""Where reports go: checked before anything is measured, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from merge_models.evals.report import to_html, to_markdown
from merge_models.evals.report.comparison import Comparison
from merge_models.evals.schema import Evaluation
from merge_models.merge.errors import MergeError, printable

Report = Evaluation | Comparison


def _json(record: Report) -> str:
    return record.to_json()


_FORMATS = {".json": _json, ".md": to_markdown, ".html": to_html}


def check_outlets(files: Sequence[Path]) -> None:
    """Raises ``MergeError`` for a report that could not be written, before anything is measured."""
    for file in files:
        shown = printable(str(file), 400)
        if file.suffix not in _FORMATS:
            raise MergeError(f"report '{shown}': the name must end in {', '.join(_FORMATS)}")
        if file.is_dir():
            raise MergeError(f"report '{shown}' is a folder; name a file in it")
        if not file.parent.is_dir():
            raise MergeError(f"report '{shown}': there is no folder {printable(str(file.parent), 400)}")
        if not os.access(file.parent, os.W_OK):
            raise MergeError(f"report '{shown}': its folder cannot be written")


def write_outlets(report: Report, files: Sequence[Path]) -> None:
    """Writes each file in the format that its name ends in."""
    for file in files:
        text = _FORMATS[file.suffix](report)
        try:
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=file.parent, prefix=".report-", delete=False
            ) as out:
                out.write(text)
            os.chmod(out.name, 0o644)
            os.replace(out.name, file)
        except OSError as error:
            raise MergeError(
                f"report '{printable(str(file), 400)}' cannot be written: {error.strerror}"
            ) from None
