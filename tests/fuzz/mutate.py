"""What is done to a value, a text, or a file: how inputs are wrong, by accident and on purpose."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

SECRET = "the-canary-s-secret"
"""In a file that no model may give away."""

_TEXTS = (
    "", " ", "\0", "\x1b[2J", "\u202egpj.exe", "\ud800", "é" * 3, "a\nb", "..", "../../canary/secret.json",
    "/etc/passwd", "~", "a/b", "con", "x" * 300, "x" * 5000, "-o", "{{ 7 }}", "{%", "<script>", "```",
    "!!python/name:os.system", "F32", "BF16", "F8_E4M3", "I64", "BOOL", "F4", "union", "base", "NaN", "null",
    "1e400", "layers:" + "9" * 5000 + "-1", "(a+)+$", "[", "*", "model.embed_tokens.weight",
    "model-00001-of-00002.safetensors", "tokenizer.json", "LlamaTokenizer",
)  # fmt: skip
_NUMBERS = (
    0, 1, -1, 2, 3, 7, 255, 2**31, 2**32 - 1, 2**53, 2**62, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e-320,
    1e308, float("inf"), float("nan"), True, False, None,
)  # fmt: skip


def nasty(random: Random, depth: int = 0) -> Any:
    """A value that nobody expects."""
    kind = random.randrange(9 if depth < 3 else 6)
    if kind < 3:
        return random.choice(_NUMBERS)
    if kind < 6:
        return random.choice(_TEXTS)
    if kind == 6:
        return [nasty(random, depth + 1) for _ in range(random.randrange(4))]
    if kind == 7:
        return {str(random.choice(_TEXTS)): nasty(random, depth + 1) for _ in range(random.randrange(4))}
    value: Any = 1
    for _ in range(random.choice((31, 40, 150))):
        value = [value] if random.random() < 0.5 else {"a": value}
    return value


def places(value: Any, limit: int = 4000) -> list[tuple[Any, Any]]:
    """(container, key) of every value inside a value."""
    found: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting and len(found) < limit:
        item = waiting.pop()
        keys = (
            list(item) if isinstance(item, dict) else list(range(len(item))) if isinstance(item, list) else []
        )
        found += [(item, key) for key in keys]
        waiting += [item[key] for key in keys if isinstance(item[key], (dict, list))]
    return found


def mutated(value: Any, random: Random) -> Any:
    """The value with one to four things in it changed."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 1, 2, 4))):
        found = places(value)
        if not found or random.random() < 0.02:
            return nasty(random)
        container, key = random.choice(found)
        kind = random.randrange(8)
        if kind < 3:
            container[key] = nasty(random)
        elif kind == 3:
            del container[key]
        elif kind == 4:
            other, place = random.choice(found)
            container[key] = copy.deepcopy(other[place]) if place in other or isinstance(other, list) else 0
        elif kind == 5 and isinstance(container, dict):
            container[str(nasty(random, 3))] = container.pop(key)
        elif kind == 6 and isinstance(container[key], int):
            container[key] += random.choice((-1, 1, 8, -(2**33), 2**33))
        elif isinstance(container[key], str):
            container[key] = (
                container[key][::-1] if random.random() < 0.3 else container[key] + random.choice(_TEXTS)
            )
        elif isinstance(container[key], list):
            container[key] = container[key] * random.choice((0, 2, 300))
        else:
            container[key] = nasty(random)
    return value


def tangled(value: Any, random: Random) -> Any:
    """The value with parts of it in several places at once, at times within themselves: aliases in YAML."""
    value = copy.deepcopy(value)
    for _ in range(random.choice((1, 3, 30))):
        found = places(value, 200)
        (container, key), (other, place) = random.choice(found), random.choice(found)
        container[key] = other[place]
    return value


def text_of(value: Any, random: Random) -> bytes:
    """JSON of a value, sometimes with the faults that only text has."""
    text = json.dumps(value, ensure_ascii=random.random() < 0.7).encode("utf-8", "surrogatepass")
    return mangled(text, random) if random.random() < 0.25 else text


def mangled(data: bytes, random: Random) -> bytes:
    """Bytes flipped, cut, repeated, inserted, or drowned."""
    for _ in range(random.choice((1, 1, 3))):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(8)
        if kind == 0:
            data = data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
        elif kind == 1:
            data = data[:at]
        elif kind == 2:
            data = data[:at] + random.randbytes(random.randrange(1, 20)) + data[at:]
        elif kind == 3:
            data = data[:at] + data[at : at + 40] * random.choice((2, 50)) + data[at + 40 :]
        elif kind == 4:
            data = (
                data[:at]
                + random.choice((b"[", b"{", b'{"a":', b"9", b'"', b"- ", b": ", b"&a ", b"*a ")) * 3000
                + data[at:]
            )
        elif kind == 5:
            data = data[:at] + data[at + random.randrange(1, 60) :]
        elif kind == 6:
            data = (
                data[:at]
                + random.choice(
                    (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\xed\xa0\x80", b"NaN", b"1e999")
                )
                + data[at:]
            )
        else:
            data = data[:at] + b",".join([random.choice((b"[]", b"{}", b"0", b'""'))] * 200_000) + data[at:]
    return data


def mutate_safetensors(file: Path, random: Random) -> None:
    """Changes a safetensors file: its header's values, its header's text, its length, or its data."""
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    kind = random.randrange(6)
    if kind < 3:
        header = text_of(mutated(json.loads(header), random), random)
        header += b" " * (-len(header) % 8)
    elif kind == 3:
        header = mangled(header, random)
    elif kind == 4:
        body = mangled(body, random)
    claimed = len(header)
    if kind == 5:
        claimed = random.choice(
            (0, 1, 7, length + 1, length - 1, 2**31, 2**63, 2**64 - 1, random.getrandbits(64))
        )
    start = struct.pack("<Q", claimed)
    file.write_bytes(start + header + body)


def mutate_json(file: Path, random: Random) -> None:
    """Changes a JSON file."""
    file.write_bytes(text_of(mutated(json.loads(file.read_bytes()), random), random))


def mutate_text(file: Path, random: Random) -> None:
    """Changes any file's bytes."""
    file.write_bytes(mangled(file.read_bytes(), random))


def _link(target: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        file.unlink()
        file.symlink_to(target)

    return make


def _other(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        file.unlink()
        make(file)

    return change


def _sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 1 << 40)


REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    "link to the canary": _link("../../canary/secret.json"),
    "link to itself": _link("."),
    "dead link": _link("nowhere"),
    "link to endless zeros": _link("/dev/zero"),
    "link to another file": _link("config.json"),
    "folder": _other(Path.mkdir),
    "pipe": _other(os.mkfifo),
    "empty": _other(Path.touch),
    "a terabyte of nothing": _other(_sparse),
    "pickle": _other(lambda file: file.write_bytes(b"\x80\x04c__builtin__\nexit\n(tR.")),
    "gone": Path.unlink,
}
