"""Where reports go."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from merge_models.evals.report.outlets import check_outlets, write_outlets
from merge_models.evals.schema import Evaluation
from merge_models.merge.errors import MergeError


def test_outlets_replace_a_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")

    class Broken:
        def to_json(self) -> str:
            raise RuntimeError

        to_markdown = to_html = to_json

    with pytest.raises(RuntimeError):
        write_outlets(cast("Evaluation", Broken()), [file])
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(MergeError, match="is a folder"):
        (tmp_path / "x.md").mkdir()
        check_outlets([tmp_path / "x.md"])
