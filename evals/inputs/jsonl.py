"""Text that a user gives: JSONL and plain text files, read with bounds and refused by file and line."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.guard import is_file, parse_json, read_bounded
from merge_models.merge.errors import MergeError, printable

MAX_FILE = 256 << 20
MAX_LINE = 1 << 20
MAX_ROWS = 200_000
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Row:
    """One JSON object of a JSONL file, and where it stands."""

    file: Path
    line: int
    fields: dict[str, Any]

    def error(self, problem: str) -> MergeError:
        """Returns a ``MergeError`` that names file and line."""
        return _bad_line(self.file, self.line, problem)

    def text(self, *names: str) -> str:
        """Returns the text of the first of these fields that is there; one must be, and hold something."""
        name = next((name for name in names if name in self.fields), None)
        if name is None:
            raise self.error(f"has no field {_either(names)}; its fields: {_shown(self.fields)}")
        return self._checked(self.fields[name], f"'{name}'")

    def optional(self, name: str, default: str) -> str:
        """Returns the text of a field, or ``default`` where the row lacks it."""
        return self._checked(self.fields[name], f"'{name}'") if name in self.fields else default

    def texts(self, name: str) -> tuple[str, ...]:
        """Returns a field that holds a list of texts."""
        value = self.fields.get(name)
        if not isinstance(value, list):
            raise self.error(f"'{name}' must be a list of texts; its fields: {_shown(self.fields)}")
        return tuple(self._checked(item, f"'{name}'[{place}]") for place, item in enumerate(value))

    def _checked(self, value: object, what: str) -> str:
        if not isinstance(value, str):
            raise self.error(f"{what} must be a text, not {type(value).__name__}")
        if not value:
            raise self.error(f"{what} is empty")
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise self.error(f"{what} holds half of a surrogate pair, which is no text") from None
        return value


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """Returns the objects of a JSONL file, one a line; blank lines are skipped.

    Raises:
        MergeError: it cannot be read, exceeds the bounds, or a line is no JSON object in UTF-8.
    """
    file = _checked_file(path)
    rows = [Row(file, number, _object(file, number, line)) for number, line in _lines(file)]
    if not rows:
        raise MergeError(f"{printable(str(file), 400)}: holds no rows; give one JSON object a line")
    return rows


def read_text(path: str | os.PathLike[str]) -> str:
    """Reads a whole text file in UTF-8, line ends as ``\\n``.

    Raises:
        MergeError: it cannot be read, is larger than ``MAX_FILE``, or is not UTF-8.
    """
    file = _checked_file(path)
    data = _bytes(file)
    try:
        text = data.removeprefix(_BYTE_ORDER_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise MergeError(
            f"{printable(str(file), 400)}, line {line}: is not UTF-8; convert the file"
        ) from None
    return text.replace("\r\n", "\n")


def _checked_file(path: str | os.PathLike[str]) -> Path:
    file = Path(path)
    if not is_file(file):
        raise MergeError(f"{printable(str(file), 400)}: no such file; check the path")
    return file


def _bytes(file: Path) -> bytes:
    return read_bounded(file, MAX_FILE, "give a part of it", MergeError)


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    rows = 0
    for number, line in enumerate(_bytes(file).removeprefix(_BYTE_ORDER_MARK).split(b"\n"), start=1):
        if len(line) > MAX_LINE:
            raise _bad_line(file, number, f"longer than {MAX_LINE >> 20} MiB; split it")
        if line.strip():
            rows += 1
            if rows > MAX_ROWS:
                raise _bad_line(file, number, f"more than {MAX_ROWS} rows; give a sample of them")
            yield number, line


def _object(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except UnicodeDecodeError:
        raise _bad_line(file, number, "is not UTF-8; convert the file") from None
    except ValueError as error:
        raise _bad_line(file, number, f"is not JSON ({printable(str(error))}); mend the line") from None
    if not isinstance(value, dict):
        raise _bad_line(file, number, 'must be a JSON object such as {"text": "..."}')
    return value


def _bad_line(file: Path, number: int, problem: str) -> MergeError:
    return MergeError(f"{printable(str(file), 400)}, line {number}: {problem}")


def _either(names: Sequence[str]) -> str:
    return " or ".join(f"'{name}'" for name in names)


def _shown(fields: dict[str, Any]) -> str:
    return ", ".join(printable(name, 40) for name in sorted(fields)[:8]) or "none"
