"""Kill every family's merge at random moments, let it go on, compare the bytes.

    python -m benchmarks.kill --kills 200

After every kill the target must be what it was or the whole new one; after the end it must hold the bytes of
an undisturbed merge, and nothing may be left beside it. Exits 1 at the first thing that is not so.
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
    total = 0
    for family in options.families or [family.name for family in FAMILIES]:
        with tempfile.TemporaryDirectory(prefix="merge-models-kill-") as work:
            started = time.monotonic()
            (count,) = kill.run(options.kills, Path(work), options.seed, [family]).values()
        left = ", ".join(f"{number} {state}" for state, number in sorted(count.left.items()))
        seconds = time.monotonic() - started
        print(f"{family:20} {count.kills} kills, {count.finished} ends ({seconds:.0f} s): {left}", flush=True)
        total += count.kills
    print(f"{total} kills: every target whole, all bytes equal")


if __name__ == "__main__":
    main()
