"""Which way a merge takes through the house: modules and rooms that it enters, and calls against the arrows.

    python -m benchmarks.way

A small karcher merge, folder to folder, in one thread, is watched call by call. An arrow of the map
(docs/design.md) says which room may import which; a call goes against the arrows where the room that is
called stands after the one that calls. Such calls are of what was handed down: a kernel's functions, a place
to write to.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from safetensors.torch import save_file

from merge_models.merge import merge
from merge_models.merge.strategies import Karcher
from tests.test_structure import MODULES, place_in_merge

NAMES = {str(file): module for module, file in MODULES.items()}


class Watch:
    """Counts calls between modules of the rooms."""

    def __init__(self) -> None:
        self.pairs: Counter[tuple[str, str]] = Counter()

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        """Takes one event of ``sys.setprofile``."""
        del argument
        called = NAMES.get(frame.f_code.co_filename)
        if event != "call" or called is None or frame.f_code.co_name == "<module>":
            return
        caller = frame.f_back
        while caller is not None and caller.f_code.co_filename not in NAMES:
            caller = caller.f_back
        if caller is not None and NAMES[caller.f_code.co_filename] != called:
            self.pairs[NAMES[caller.f_code.co_filename], called] += 1


def watched_merge(folder: Path) -> Watch:
    """Merges two small models, and returns what was seen."""
    for name in ("a", "b"):
        (folder / name).mkdir()
        save_file({"w": torch.randn(64, 64)}, folder / name / "model.safetensors")
    watch = Watch()
    threading.setprofile(watch)
    sys.setprofile(watch)
    try:
        merge([folder / "a", folder / "b"], Karcher(), out=folder / "out", threads=1)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return watch


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m benchmarks.way",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pairs = watched_merge(Path(folder)).pairs
    modules = {module for pair in pairs for module in pair if module.startswith("merge_models.merge.")}
    rooms = Counter(module.split(".")[2] for module in modules)
    print(f"{len(modules)} modules in {len(rooms)} rooms: {dict(sorted(rooms.items()))}")
    against = [pair for pair in pairs if _goes_against(*pair)]
    print(f"{len(pairs)} pairs of modules call each other, {len(against)} of them against the arrows:")
    for caller, called in against:
        print(f"  {caller.removeprefix('merge_models.')} -> {called.removeprefix('merge_models.')}")


def _goes_against(caller: str, called: str) -> bool:
    inside = all(module.startswith("merge_models.merge.") for module in (caller, called))
    return inside and place_in_merge(caller) < place_in_merge(called)


if __name__ == "__main__":
    main()
