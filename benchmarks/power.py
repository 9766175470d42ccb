"""Cut merges off from power: replay what they wrote with unsynced writes missing or torn, and let them go on.

    python -m benchmarks.power --cases 1000

tests/crash/power.py says what a crash may leave. Exits 1 at the first output that is not right.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from tests.crash import power
from tests.crash.families import FAMILIES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng, outages, started = random.Random(options.seed), 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="merge-models-power-") as work:
        power.prepare(Path(work), FAMILIES)
        seen: dict[str, set[bytes]] = {family.name: set() for family in FAMILIES}
        for case in range(options.cases):
            family = FAMILIES[case % len(FAMILIES)]
            outages += power.outage(family, Path(work), rng, seen[family.name])
            if (case + 1) % 100 == 0:
                print(f"{case + 1} cases, {outages} outages, {time.monotonic() - started:.0f} s", flush=True)
    print(
        f"{options.cases} merges of {len(FAMILIES)} families, {outages} outages, no two of which left equal"
        " disks: every target whole, all bytes equal"
    )


if __name__ == "__main__":
    main()
