"""The dtypes of safetensors: their sizes, and their names elsewhere.

Kept free of torch, so that headers are read and plans are made before anything heavy is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass

from merge_models.merge.errors import RecipeError, did_you_mean


@dataclass(frozen=True)
class DType:
    """One safetensors dtype.

    Attributes:
        code: the name in safetensors headers, such as ``"BF16"``.
        size: bytes per element.
        torch_name: attribute of ``torch``, such as ``"bfloat16"``.
        is_float: whether merging does arithmetic on it.
        significand: bits of precision, the implicit one included (0 for integers).
    """

    code: str
    size: int
    torch_name: str
    is_float: bool = False
    significand: int = 0


_TABLE = (
    DType("F64", 8, "float64", True, 53),
    DType("F32", 4, "float32", True, 24),
    DType("F16", 2, "float16", True, 11),
    DType("BF16", 2, "bfloat16", True, 8),
    DType("F8_E4M3", 1, "float8_e4m3fn", True, 4),
    DType("F8_E5M2", 1, "float8_e5m2", True, 3),
    DType("I64", 8, "int64"),
    DType("I32", 4, "int32"),
    DType("I16", 2, "int16"),
    DType("I8", 1, "int8"),
    DType("U64", 8, "uint64"),
    DType("U32", 4, "uint32"),
    DType("U16", 2, "uint16"),
    DType("U8", 1, "uint8"),
    DType("BOOL", 1, "bool"),
)
BY_CODE = {dtype.code: dtype for dtype in _TABLE}
BY_TORCH_NAME = {dtype.torch_name: dtype for dtype in _TABLE}
_SHORT = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "half": "float16"}
_SHORT |= {"fp32": "float32", "f32": "float32", "float": "float32", "f64": "float64"}
_SHORT |= {"fp8": "float8_e4m3fn", "float8_e4m3": "float8_e4m3fn", "double": "float64"}


def parse_dtype(name: str) -> DType:
    """Reads a user's word for a floating dtype (``bf16``, ``bfloat16``, ``torch.bfloat16``).

    Raises:
        RecipeError: no floating dtype has that name.
    """
    word = str(name).removeprefix("torch.").lower()
    found = BY_TORCH_NAME.get(_SHORT.get(word, word))
    if found is None or not found.is_float:
        floats = [dtype.torch_name for dtype in _TABLE if dtype.is_float]
        raise RecipeError(f"unknown dtype '{name}'{did_you_mean(word, [*floats, *_SHORT])}")
    return found


def widest(dtypes: list[DType]) -> DType:
    """Returns the smallest listed floating dtype that holds every value of all the given ones."""
    distinct = sorted(set(dtypes), key=lambda dtype: (dtype.size, dtype.significand))
    if len(distinct) == 1:
        return distinct[0]
    if distinct[-1].code in ("F64", "F32"):
        return distinct[-1]
    codes = {dtype.code for dtype in distinct}
    if codes <= {"F16", "F8_E4M3", "F8_E5M2"}:
        return BY_CODE["F16"]
    if codes <= {"BF16", "F8_E4M3", "F8_E5M2"}:
        return BY_CODE["BF16"]
    return BY_CODE["F32"]
