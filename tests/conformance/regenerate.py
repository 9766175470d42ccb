"""Writes mergekit's results for the rows of table.py.

In an environment with mergekit 0.1.5, from the repository's root:

    python -m tests.conformance.regenerate
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from .table import PARENTS, ROWS, SAMPLE_SHAPE, SAMPLES, SHAPES, SPREADS, Row, Sample

FILE = Path(__file__).with_name("mergekit_0_1_5.safetensors")


def make_inputs() -> dict[str, torch.Tensor]:
    """The base and the parents of each family."""
    generator = np.random.default_rng(20260901)
    inputs = {}
    for name, shape in SHAPES.items():
        inputs[f"base/{name}"] = torch.from_numpy(generator.standard_normal(shape))
    for family, spread in SPREADS.items():
        for name in SHAPES:
            shared = generator.standard_normal(SHAPES[name])
            for parent in range(PARENTS):
                own = generator.standard_normal(SHAPES[name])
                delta = torch.from_numpy(spread * (shared + own))
                inputs[f"{family}/{parent}/{name}"] = inputs[f"base/{name}"] + delta
    return inputs


def run(row: Row, family: str, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """mergekit's results for one row and family: every tensor, flat, one after the other."""
    from mergekit.merge_methods import merge_tensors  # pyright: ignore[reportMissingImports]

    results = []
    for name in row.shapes:
        tensors = {str(p): inputs[f"{family}/{p}/{name}"] for p in range(row.parents)}
        if row.base != "unused":
            tensors = {"base": inputs[f"base/{name}"], **tensors}
        merged = merge_tensors(
            list(tensors.values()),
            row.method,
            ids=list(tensors),
            base_index=None if row.base == "unused" else 0,
            parameters={key: by_id(value) for key, value in row.parameters.items()},
        )
        results.append(merged.double().reshape(-1))
    return torch.cat(results)


def by_id(value: Any) -> Any:
    return {str(p): v for p, v in enumerate(value)} if isinstance(value, list) else value


def sample_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Base and parent of the random rows: too large to be stored, so made the same way twice."""
    generator = np.random.default_rng(77)
    base = generator.standard_normal(SAMPLE_SHAPE)
    return torch.from_numpy(base), torch.from_numpy(base + 0.1 * generator.standard_normal(SAMPLE_SHAPE))


def statistics(merged: torch.Tensor) -> torch.Tensor:
    """Shares of elements kept, of all and of the quarters of each row by size; the L1 norm over the whole."""
    base, parent = sample_inputs()
    delta, left = parent - base, merged - base
    kept = (left != 0).double()
    order = delta.abs().argsort(dim=1)
    quarters = kept.gather(1, order).reshape(SAMPLE_SHAPE[0], 4, -1).mean((0, 2))
    return torch.cat([kept.mean()[None], quarters, (left.abs().sum() / delta.abs().sum())[None]])


def draw(sample: Sample) -> torch.Tensor:
    from mergekit.merge_methods import merge_tensors  # pyright: ignore[reportMissingImports]

    torch.manual_seed(1)
    parameters = {"weight": {"parent": 1.0}, **sample.parameters}
    return statistics(
        merge_tensors(
            list(sample_inputs()), sample.method, ids=["base", "parent"], base_index=0, parameters=parameters
        )
    )


def main() -> None:
    inputs = make_inputs()
    outputs = {f"{row.name}/{family}": run(row, family, inputs) for row in ROWS for family in row.families}
    samples = {f"sample/{sample.name}": draw(sample) for sample in SAMPLES}
    metadata = {"mergekit": version("mergekit"), "torch": torch.__version__}
    save_file({**inputs, **outputs, **samples}, FILE, metadata)
    print(f"{FILE.name}: {FILE.stat().st_size / 1e3:.0f} kB, {len(outputs)} results")


if __name__ == "__main__":
    main()
