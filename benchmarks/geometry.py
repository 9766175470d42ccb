"""When does geometry matter? Means on the sphere beside their flat controls, on families of parents.

    python -m benchmarks.geometry [--figure docs/geometry.svg]

Parents are gaussian tensors of a million elements with the stated geometry, in float32. For each family:

- *shrinkage*: norm of the linear mean, over the mean norm of the parents (1: nothing is lost);
- *karcher vs linear*: what remains between them when both have the same norm, relative;
- *karcher vs norm_mean*, *karcher vs unit_mean*: relative differences of the results;
- *rounding*: relative error of rounding the Karcher mean to bfloat16, below which no difference survives.

`norm_mean` (the linear mean at the mean norm) and `unit_mean` (the mean of directions at the mean norm) are
the controls that any claim for the Karcher mean must beat.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.strategies import AbstractStrategy, Karcher, Linear, NormMean, UnitMean

COUNT = 1_000_000
Family = tuple[str, list[Tensor], Tensor | None]


def gaussians(count: int, seed: int = 0) -> list[Tensor]:
    """Independent unit gaussian tensors."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(COUNT, generator=generator) for _ in range(count)]


def siblings(count: int, spread: float) -> tuple[list[Tensor], Tensor]:
    """Fine-tunes of one base: independent deltas of relative norm ``spread``; and the base."""
    base, *deltas = gaussians(count + 1)
    return [base + spread * delta for delta in deltas], base


def families() -> list[Family]:
    """The rows of the table: name, parents, and the base where the sphere is about it."""
    rows: list[Family] = []
    for spread in (0.001, 0.02, 0.1, 0.5, 1.0):
        rows.append((f"3 siblings, deltas {spread:g} of the base", siblings(3, spread)[0], None))
    rows.append(("10 siblings, deltas 1 of the base", siblings(10, 1.0)[0], None))
    parents, base = siblings(3, 0.02)
    rows.append(("3 siblings, deltas 0.02, sphere about the base", parents, base))
    norms = [scale * parent for scale, parent in zip((0.5, 1.0, 2.0), siblings(3, 0.5)[0], strict=True)]
    rows.append(("deltas 0.5, norms 0.5 : 1 : 2", norms, None))
    twins, _ = siblings(3, 0.05)
    rows.append(("3 near twins and 1 stranger", [*twins, gaussians(9, seed=7)[8]], None))
    rows.append(("3 strangers (independent)", gaussians(3, seed=3), None))
    return rows


def merged(strategy: AbstractStrategy, parents: list[Tensor], base: Tensor | None) -> Tensor:
    """The merge of single tensors, in float64."""
    states = [{"x": parent} for parent in parents]
    result = merge(states, strategy, base=None if base is None else {"x": base}, dtype="float64")
    assert isinstance(result, dict)
    return result["x"]


def measure(parents: list[Tensor], base: Tensor | None) -> dict[str, float]:
    """One row's figures."""
    origin = "zero" if base is None else "base"
    centre = torch.zeros(COUNT, dtype=torch.float64) if base is None else base.double()
    karcher = merged(Karcher(origin=origin), parents, base) - centre
    linear = merged(Linear(), parents, None) - centre
    scaled = linear * (karcher.norm() / linear.norm())
    norm_mean = merged(NormMean(origin=origin), parents, base) - centre
    unit_mean = merged(UnitMean(origin=origin), parents, base) - centre
    mean_norm = sum(float((parent.double() - centre).norm()) for parent in parents) / len(parents)
    whole = karcher + centre

    def gap(other: Tensor) -> float:
        return float((karcher - other).norm() / karcher.norm())

    return {
        "shrinkage": float(linear.norm()) / mean_norm,
        "karcher vs linear": gap(scaled),
        "karcher vs norm_mean": gap(norm_mean),
        "karcher vs unit_mean": gap(unit_mean),
        "rounding": float((whole.bfloat16().double() - whole).norm() / karcher.norm()),
    }


def table(show: Callable[[str], None]) -> list[tuple[str, dict[str, float]]]:
    """Measures every family and prints a Markdown table."""
    results = []
    for name, parents, base in families():
        figures = measure(parents, base)
        if not results:
            show("| parents | " + " | ".join(figures) + " |")
            show("|---" * (len(figures) + 1) + "|")
        results.append((name, figures))
        show(f"| {name} | " + " | ".join(f"{value:.2g}" for value in figures.values()) + " |")
    return results


def shrink_curve(counts: range, spread: float) -> list[tuple[int, float, float]]:
    """(N, linear, karcher): norms of merged deltas over the parents' mean delta norm, for N siblings."""
    points = []
    for count in counts:
        parents, base = siblings(count, spread)
        mean_norm = sum(float((parent - base).norm()) for parent in parents) / count
        linear = merged(Linear(), parents, None) - base.double()
        karcher = merged(Karcher(origin="base"), parents, base) - base.double()
        points.append((count, float(linear.norm()) / mean_norm, float(karcher.norm()) / mean_norm))
    return points


def figure(points: list[tuple[int, float, float]]) -> str:
    """An SVG of the shrinking delta, in the colours of light and dark pages alike."""
    left, top, width, height = 60, 30, 520, 220
    last = points[-1][0]

    def place(count: int, value: float) -> str:
        x = left + (count - 1) / (last - 1) * width
        return f"{x:.1f},{top + (1.1 - value) / 1.1 * height:.1f}"

    def line(index: int, colour: str) -> str:
        path = " ".join(place(int(p[0]), p[index]) for p in points)
        dots = "".join(
            '<circle cx="{}" cy="{}" r="3.5" fill="{}"/>'.format(
                *place(int(p[0]), p[index]).split(","), colour
            )
            for p in points
        )
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>{dots}'

    def level(value: float) -> str:
        y = place(1, value).split(",")[1]
        return (
            f'<line x1="{left}" x2="{left + width}" y1="{y}" y2="{y}" stroke="#8888" stroke-width="1"/>'
            f'<text x="{left - 8}" y="{y}" text-anchor="end" dominant-baseline="middle">{value:g}</text>'
        )

    ticks = "".join(
        f'<text x="{place(n, 0).split(",")[0]}" y="{top + height + 20}" text-anchor="middle">{n}</text>'
        for n, _, _ in points
    )
    levels = "".join(level(value) for value in (0, 0.5, 1.0))
    labels = (
        f'<text x="{left + width - 4}" y="{top + 6}" text-anchor="end" fill="#1a7f37">Karcher mean about the'
        f' base</text><text x="{left + width - 4}" y="{top + height * 0.6:.0f}" text-anchor="end"'
        f' fill="#cf222e">plain average: 1/sqrt(N)</text>'
        f'<text x="{left + width / 2}" y="{top + height + 44}" text-anchor="middle">number of merged'
        " fine-tunes with independent deltas</text>"
        f'<text x="{left}" y="16">norm of the merged delta / mean norm of the parents\' deltas</text>'
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 20} {top + height + 56}"'
        ' font-family="system-ui, sans-serif" font-size="13" fill="#7d8590" role="img"'
        ' aria-label="Norm of merged deltas against the number of models">'
        f"{levels}{line(1, '#cf222e')}{line(2, '#1a7f37')}{ticks}{labels}</svg>\n"
    )


def main() -> None:
    """Prints the table; draws the figure where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--figure", type=Path, help="write the shrinking delta as SVG")
    options = parser.parse_args()
    table(print)
    if options.figure:
        options.figure.write_text(figure(shrink_curve(range(1, 11), 0.02)), encoding="utf-8")


if __name__ == "__main__":
    main()
