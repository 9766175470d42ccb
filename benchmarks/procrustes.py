"""Three Procrustes rotations near one base: one shared factorisation against three SVDs.

    python -m benchmarks.procrustes [--size 2048] [--spectrum decay|gauss] [--distance 0.01]

Prints seconds, their ratio (the bar is 0.5) and, for the first target, how far each rotation is from the
one found in float64, as entries and as the movement of the rotated base. `decay` is a base with singular
values k^-1/2; the square `gauss` one has singular values near zero, where no rotation is well posed.
"""

import argparse
import time

import torch
from torch import Tensor

from merge_models.manifolds.procrustes import SharedProcrustes


def make_base(size: int, spectrum: str) -> Tensor:
    base = torch.randn(size, size)
    if spectrum == "gauss":
        return base
    left, right = torch.linalg.qr(base)[0], torch.linalg.qr(torch.randn(size, size))[0]
    return (left * torch.arange(1, size + 1).rsqrt()) @ right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--spectrum", choices=["decay", "gauss"], default="decay")
    parser.add_argument("--distance", type=float, default=0.01, help="|target - base| / |base|")
    options = parser.parse_args()
    torch.manual_seed(0)
    base = make_base(options.size, options.spectrum)
    noise = torch.randn(3, *base.shape)
    changes = noise * options.distance * base.norm() / noise[0].norm()
    gram, shifts = base.mT @ base, base.mT @ changes

    began = time.perf_counter()
    shared = SharedProcrustes.from_gram(gram)
    found = [shared.solve(shift) for shift in shifts]
    fast = time.perf_counter() - began

    began = time.perf_counter()
    by_svd = [svd_rotation(gram + shift) for shift in shifts]
    slow = time.perf_counter() - began

    print(f"size {options.size}, {options.spectrum}, distance {options.distance}, float32")
    print(f"shared {fast:.2f} s, three SVDs {slow:.2f} s, ratio {fast / slow:.2f}")
    for near in found:
        print(f"  {near.method}, {near.iterations} iterations, last moved the base {near.residual:.1e}")
    base, change = base.double(), changes[0].double()
    exact = svd_rotation(base.mT @ (base + change))
    report("shared", found[0].rotation, exact, base)
    report("SVD", by_svd[0], exact, base)


def svd_rotation(moment: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(moment)
    return left @ right


def report(name: str, rotation: Tensor, exact: Tensor, base: Tensor) -> None:
    precise = rotation.double()
    moved = (base @ (precise - exact)).norm() / base.norm()
    defect = precise.mT @ precise - torch.eye(len(precise), dtype=torch.float64)
    print(
        f"  {name} in float32 against the SVD in float64:"
        f" entries differ by {float((precise - exact).abs().max()):.1e},"
        f" the rotated base by {float(moved):.1e}; R^T R - I {float(defect.abs().max()):.1e}"
    )


if __name__ == "__main__":
    main()
