"""``python -m tests.fuzz --count 10000 [--first N] [--jobs 2]``, or ``--case N`` for one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .campaign import campaign
from .run import Bench


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--case", type=int, help="run this one, print how it ends, keep its files")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-case"), help="where --case keeps its files")
    options = parser.parse_args()
    if options.case is not None:
        with Bench() as bench:
            print(bench.run(options.case, options.keep.absolute()))
        return
    sys.exit(1 if campaign(options.first, options.count, options.jobs, options.seconds) else 0)


if __name__ == "__main__":
    main()
