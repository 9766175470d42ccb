"""A repaired merge on disk: the merge's tensors, rescaled where that was decided, in a new folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from merge_models.evals.repairs.record import Origins, repair_binding, write_record
from merge_models.evals.repairs.rescale import Mended, out_dimension
from merge_models.evals.schema import RepairReport
from merge_models.merge.checkpoint import OutputTensor, Staging, plan_layout
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.checkpoint.sidecars import find_sidecars
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.errors import CheckpointError

REPORT = "repair.json"
_OWN = (REPORT, "README.md", MANIFEST)
_BLOCK = 1 << 24


def stored_names(checkpoint: DiskSource, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Returns which tensor of a checkpoint each parameter of the model is: of the same name, or behind a
    prefix.

    Parameters that transformers puts together from several tensors, or that two tensors could be, are left
    out.
    """
    found: dict[str, str] = {}
    for name, tensor in tensors.items():
        fitting = [
            stored
            for stored, info in checkpoint.tensors.items()
            if (stored == name or stored.endswith(f".{name}")) and info.shape == tuple(tensor.shape)
        ]
        exact = [stored for stored in fitting if stored == name]
        if len(exact or fitting) == 1:
            found[name] = (exact or fitting)[0]
    return found


def write_repaired(
    checkpoint: DiskSource,
    model: torch.nn.Module,
    mended: Sequence[Mended],
    names: Mapping[str, str],
    out: Path,
    report: RepairReport,
    origins: Origins,
    overwrite: bool,
) -> None:
    """Writes the folder: it appears complete, or not at all.

    Args:
        names: from parameters to tensors (``stored_names``).
        report: what changed; ``repair.json`` holds it.
        origins: what it was made from.

    Raises:
        CheckpointError: the merge cannot be read or the output cannot be written.
    """
    maps: dict[str, tuple[Tensor, Tensor | None, int]] = {}
    for step in mended:
        dimension = out_dimension(model.get_submodule(step.name)) or 0
        maps[names[f"{step.name}.weight"]] = (step.scale, None, dimension)
        if f"{step.name}.bias" in names:
            maps[names[f"{step.name}.bias"]] = (step.scale, step.shift, 0)
    infos = list(checkpoint.tensors.values())
    layout = plan_layout([OutputTensor(i.name, i.dtype, i.shape) for i in infos])
    staging = Staging(out, layout, overwrite)
    try:
        staging.begin(repair_binding(report, origins), restart=True)
        staging.allocate()
        for info in infos:
            if info.name in maps:
                staging.write(info.name, 0, _mapped(checkpoint, info, *maps[info.name]))
            else:
                _copy(checkpoint, info, staging)
        for name, content in find_sidecars(checkpoint.folder, [f.name for f in checkpoint.files]).contents():
            if name not in _OWN:
                staging.write_bytes(name, content)
        config = checkpoint.config or read_json(checkpoint.folder / "config.json")
        if config:
            staging.write_json("config.json", config)
        staging.write_text(REPORT, report.model_dump_json(indent=1))
        staging.write_index()
        write_record(staging, layout, report, origins)
        staging.publish()
    except BaseException as failure:
        if not staging.is_published:
            staging.discard()
        elif isinstance(failure, KeyboardInterrupt):
            failure.args = ("the output is complete",)
        raise


def _read(checkpoint: DiskSource, info: TensorInfo, start: int, stop: int) -> np.ndarray:
    return checkpoint.read(info, start, stop, np.empty(stop - start, np.uint8))


def _copy(checkpoint: DiskSource, info: TensorInfo, staging: Staging) -> None:
    for start in range(0, info.nbytes, _BLOCK):
        stop = min(start + _BLOCK, info.nbytes)
        staging.write(info.name, start, _read(checkpoint, info, start, stop))


def _mapped(
    checkpoint: DiskSource, info: TensorInfo, scale: Tensor, shift: Tensor | None, dimension: int
) -> np.ndarray:
    """The tensor's bytes after the map, computed from what is stored in float64 and rounded once."""
    dtype = getattr(torch, info.dtype.torch_name)
    stored = torch.from_numpy(_read(checkpoint, info, 0, info.nbytes)).view(dtype).reshape(info.shape)
    shape = [1] * stored.ndim
    shape[dimension] = -1
    mapped = stored.double() * scale.cpu().reshape(shape)
    if shift is not None:
        mapped += shift.cpu()
    rounded = mapped.to(dtype).contiguous()
    if not torch.isfinite(rounded).all() and torch.isfinite(stored).all():
        raise CheckpointError(
            f"{checkpoint.label}: tensor '{info.name}' does not fit its dtype after the repair; convert the"
            " merge to float32 or bfloat16 first"
        )
    return rounded.view(torch.uint8).reshape(-1).numpy()
