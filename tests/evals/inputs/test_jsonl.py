"""Files that a user gives: refused by name and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from merge_models.evals.inputs import jsonl
from merge_models.evals.inputs.calibration import (
    calibration_batches,
    read_calibration,
)
from merge_models.merge.errors import MergeError
from tests.evals.inputs.texts import Characters

BAD_FILES = [
    ("text.jsonl", b'{"text": "a"}\n{"text": 3}\n', "line 2: 'text' must be a text, not int"),
    ("text.jsonl", b'{"text": "a"}\n\n{"prompt": "b"}', "line 3: has no field 'text'; its fields: prompt"),
    ("text.jsonl", b"[1]", "line 1: must be a JSON object"),
    ("text.jsonl", b"{'text': 1}", "line 1: is not JSON"),
    ("text.jsonl", b'{"text": "\xff"}', "line 1: is not UTF-8"),
    ("text.jsonl", b'{"text": "\\ud800"}', "line 1: 'text' holds half of a surrogate pair"),
    ("text.jsonl", b"[" * 100_000, "line 1: is not JSON (nested too deeply)"),
    ("text.jsonl", b'{"text": ""}', "line 1: 'text' is empty"),
    ("text.jsonl", b'{"text": "a", "domain": null}', "line 1: 'domain' must be a text, not NoneType"),
    ("text.jsonl", b"\n \n", "holds no rows"),
    ("text.jsonl", b'{"text": "' + b"a" * (1 << 20) + b'"}', "line 1: longer than 1 MiB"),
    ("text.txt", b"a\nb\n\xff\n", "line 3: is not UTF-8"),
    ("text.txt", b"too little", "too little text: 0 sequences"),
    ("text.txt", b"", "too little text: 0 sequences"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_bad_files_are_refused_by_name_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MergeError) as caught:
        calibration_batches(Characters(), source=tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.txt", tmp_path / "a\nb.jsonl"):
        with pytest.raises(MergeError, match="no such file"):
            read_calibration(path)


def test_bounds_on_files_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "text.jsonl"
    file.write_bytes(b'{"text": "a"}\n' * 9)
    monkeypatch.setattr(jsonl, "MAX_ROWS", 8)
    with pytest.raises(MergeError, match="line 9: more than 8 rows"):
        read_calibration(file)
    monkeypatch.setattr(jsonl, "MAX_FILE", 1 << 3)
    with pytest.raises(MergeError, match="larger than"):
        read_calibration(file)
