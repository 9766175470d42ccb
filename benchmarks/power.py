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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.power", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    print(f"seed {options.seed}")
    rng, outages = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory(prefix="merge-models-power-") as work:
        power.prepare(Path(work), power.RECORDED)
        for case in range(options.cases):
            outages += power.outage(power.RECORDED[case % len(power.RECORDED)], Path(work), rng)
            if (case + 1) % 100 == 0:
                print(f"{case + 1} cases, {outages} outages", flush=True)
    print(f"{options.cases} merges, {outages} outages: every target whole, all bytes equal")


if __name__ == "__main__":
    main()
