"""Kill every family's merge at random moments, let it go on, compare the bytes.

    python -m benchmarks.kill --kills 200

Kills come at random times, at random steps (calls that change files), and, one in twenty, to a process of its
own: tests/crash/kill.py says how. After every kill the target must be what it was or the whole new one; after
the end it must hold the bytes of an undisturbed merge, and nothing may be left beside it. Exits 1 where one
thing is not so.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.crash import kill
from tests.crash.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kill", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of each family")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--families", nargs="*", default=[], help=", ".join(f.name for f in FAMILIES))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    left: dict[str, int] = {}
    for family in options.families or [family.name for family in FAMILIES]:
        with tempfile.TemporaryDirectory(prefix="merge-models-kill-") as work:
            started = time.monotonic()
            (count,) = kill.run(options.kills, Path(work), options.seed, [family]).values()
        seconds = time.monotonic() - started
        print(f"{family}: {_listed(count.ways)}; {count.finished} ends; {seconds:.0f} s", flush=True)
        print(f"  left: {_listed(count.left)}", flush=True)
        for name, number in count.left.items():
            left[name] = left.get(name, 0) + number
    print(f"{sum(left.values())} kills: every target whole, all bytes equal; left by them: {_listed(left)}")


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()))


if __name__ == "__main__":
    main()
