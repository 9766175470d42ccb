"""A digest of every result: the proof that a change of the code changes no byte that it should not.

    python -m benchmarks.bytes            compares with the stored table, and names every row that differs
    python -m benchmarks.bytes --torch    the same with the torch kernels instead of the compiled ones
    python -m benchmarks.bytes --write    stores the table anew, after NUMERICS was raised

Rows are every case of the strategies' table by dtype and rounding, and one for each feature of recipes. All
inputs are made of the raw words of a fixed generator by exact arithmetic, so they are the same everywhere.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.bytes_features import FEATURES
from merge_models.merge import merge
from tests.merge.strategies.cases import CASES, Case

TABLE = Path(__file__).parent.parent / "tests" / "data" / "bytes.json"
SHAPES: dict[str, tuple[int, ...]] = {
    "matrix": (24, 16),
    "wide": (8, 40),
    "tall": (40, 8),
    "vector": (33,),
    "scalar": (),
    "empty": (0, 7),
    "column": (9, 1),
    "conv": (6, 4, 3, 3),
}
LARGE = {"large": (640, 448)}
"""More than one block, so that sums over blocks count."""

KINDS = [
    ("float64", "nearest"),
    ("float32", "nearest"),
    ("float16", "nearest"),
    ("bfloat16", "nearest"),
    ("float16", "stochastic"),
    ("bfloat16", "stochastic"),
]
BY_LIBRARIES = {
    "orthogonal", "wasserstein", "log_linear", "karcher", "unit_mean", "norm_mean", "slerp", "nuslerp",
    "multislerp", "model_stock", "frechet",
}  # fmt: skip
"""Strategies that use BLAS, LAPACK or a vector library, whose last bits differ between processors."""

SLOW = {"wasserstein-full"}
"""Cases that take too long with the large tensor."""


def normal(seed: int, count: int) -> np.ndarray:
    """Returns about normal numbers, float64 ``[count]``, from raw words by exact arithmetic."""
    words = np.random.PCG64(seed).random_raw(count).astype(np.uint64)
    parts = [(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    return (np.stack(parts).astype(np.float64).sum(0) - 2 * 65535.0) / 37837.0


def state(seed: int, dtype: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Returns a sibling: a shared base plus its own difference, zero here and there, of few values there."""
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        count = int(np.prod(shape, dtype=np.int64))
        change = normal(1000 * seed + number, count) * 0.05 if seed else np.zeros(count)
        change[::7] = 0.0
        change[1::5] = np.round(change[1::5] * 64) / 64
        values = torch.from_numpy(normal(100 + number, count) + change).reshape(shape)
        tensors[name] = values.to(getattr(torch, dtype))
    return tensors


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Returns a digest of names, dtypes, shapes and bytes."""
    total = hashlib.blake2b(digest_size=8)
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        if tensor.numel():
            total.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def strategy_row(case: Case, dtype: str, rounding: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Returns the digest of one strategy's merge in memory."""
    parents = [state(seed, dtype, shapes) for seed in range(1, case.count + 1)]
    takes_base = case.strategy.base_model.value in ("optional", "required", "required, mixed")
    base = state(0, dtype, shapes) if takes_base else None
    merged = merge(parents, case.strategy, base=base, rounding=rounding, seed=7, threads=2)
    return digest(cast("dict[str, Tensor]", merged))


def feature_row(feature: Callable[[Path], dict[str, Any]]) -> str:
    """Returns the digest of what a feature of recipes gives: tensors, and small files as text."""
    with tempfile.TemporaryDirectory() as place:
        result = feature(Path(place))
    tensors = {name: value for name, value in result.items() if isinstance(value, Tensor)}
    texts = {name: value for name, value in result.items() if not isinstance(value, Tensor)}
    text = json.dumps(texts, sort_keys=True)
    return digest(tensors) + hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


Row = tuple[str, bool, Callable[[], str]]
"""A name, whether the digest is the same on every machine, and what computes it."""


def rows() -> Iterator[Row]:
    """Yields every row."""
    for case in CASES:
        portable = case.strategy.name not in BY_LIBRARIES
        for dtype, rounding in KINDS:
            yield (
                f"{case.name}/{dtype}/{rounding}",
                portable,
                partial(strategy_row, case, dtype, rounding, SHAPES),
            )
        if case.name not in SLOW:
            yield f"{case.name}/large", portable, partial(strategy_row, case, "bfloat16", "nearest", LARGE)
    for name, (portable, feature) in FEATURES.items():
        yield f"feature/{name}", portable, partial(feature_row, feature)


def machine() -> dict[str, str]:
    """Returns what rows that are not portable depend on."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {"torch": torch.__version__, "numpy": np.__version__, "processor": capability}


def stored() -> dict[str, Any]:
    """Returns the stored table."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


def numerics() -> int:
    """Returns the number that a deliberate change of bytes raises."""
    from merge_models.merge.planning.plan import NUMERICS

    return NUMERICS


def difference(row: Row, table: Mapping[str, Any], *, libraries: bool) -> str:
    """Returns a line about a row that is not what is stored; empty where it is.

    Args:
        row: the row.
        table: the stored table.
        libraries: whether rows that depend on the machine's libraries are compared, too.
    """
    name, portable, compute = row
    if name not in table["rows"]:
        return f"{name}: is not stored; store it with --write"
    if not (portable or libraries):
        return ""
    result, expected = compute(), table["rows"][name]
    return "" if result == expected else f"{name}: {result}, stored is {expected}"


def use_torch_kernels() -> None:
    """Switches the compiled kernels off, as where there was no compiler."""
    from merge_models.merge.kernels import blocks, compiled

    compiled.library = blocks.native_library = lambda: None  # type: ignore[assignment]


def main() -> int:
    """Compares, or writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="store the table anew")
    parser.add_argument("--torch", action="store_true", help="with the torch kernels")
    options = parser.parse_args()
    if options.torch:
        use_torch_kernels()
    if options.write:
        digests = {name: compute() for name, _, compute in rows()}
        table = {"numerics": numerics(), "machine": machine(), "rows": digests}
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        print(f"{len(digests)} rows stored")
        return 0
    table = stored()
    # The torch kernels take Gram moments in another order of sums, which is the libraries' own.
    lines = [line for row in rows() if (line := difference(row, table, libraries=not options.torch))]
    print("\n".join(lines) if lines else f"{len(table['rows'])} rows: no byte changed")
    if lines and numerics() == table["numerics"]:
        print("bytes changed: raise NUMERICS and tell the changelog, or mend the change")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
