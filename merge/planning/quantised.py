"""Models whose stored numbers are not their weights: quantised, as config or tensors tell."""

from __future__ import annotations

import re

from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.errors import PlanError

_SCALE = re.compile(
    r"(?:[._]weight)?[._](?:scales?(?:_inv|_weight|_input|_2)?|input_scale|absmax|quant_map|SCB|qzeros|zero_point)$"
)
_VALUES = re.compile(r"[._](?:weight|qweight|weight_packed|packed|blocks)$")


def check_not_quantised(model: Source) -> None:
    """Refuses a model that says that it is quantised, or has scales beside values of fp8 or whole numbers.

    Such values merged as they are would be multiplied by scales of other values.

    Raises:
        PlanError: it is quantised.
    """
    told = model.config.get("quantization_config")
    if told:
        method = told.get("quant_method", "unknown") if isinstance(told, dict) else "unknown"
        raise PlanError(f"{model.label}: is quantised ({printable(str(method))}); dequantise it first")
    scaled = _scaled(model)
    if scaled:
        raise PlanError(
            f"{model.label}: is quantised: '{printable(scaled[0])}' ({model.tensors[scaled[0]].dtype.code})"
            f" is scaled by '{printable(scaled[1])}'; dequantise it first (multiply, and save as bfloat16)"
        )


def _scaled(model: Source) -> tuple[str, str] | None:
    """A tensor of narrow values, and the one that scales it."""
    scales = {name[: match.start()]: name for name in model.tensors if (match := _SCALE.search(name))}
    for name, info in model.tensors.items() if scales else ():
        is_narrow = info.dtype.code.startswith("F8") or not info.dtype.is_float
        scale = scales.get(_VALUES.sub("", name)) if is_narrow else None
        if scale is not None and scale != name:
            return name, scale
    return None
