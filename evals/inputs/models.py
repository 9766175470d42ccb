"""Models for measuring: loaded as transformers does, from checked files only, and gone afterwards."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from merge_models.evals.inputs.memory import release
from merge_models.merge.checkpoint import printable
from merge_models.merge.checkpoint.clean import lay_out_model
from merge_models.merge.checkpoint.guard import read_json
from merge_models.merge.checkpoint.layers import stacks
from merge_models.merge.checkpoint.sources.lora import open_model as open_source
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.errors import CheckpointError, MergeError

if TYPE_CHECKING:
    import torch

Kind = Literal["causal", "encoder", "module"]

_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_MAX_SIZE, _MAX_LAYERS = 1 << 24, 1000
"""No model is larger: what a config asks for is built (without memory) before any weight is looked at."""


class Loaded(NamedTuple):
    """A model that can be run.

    Attributes:
        model: in eval mode.
        tokenizer: its tokenizer, or None where it has none.
        kind: ``causal`` predicts the next token, ``encoder`` gives hidden states, ``module`` is anything
            else.
    """

    model: Any
    tokenizer: Any | None
    kind: Kind


def check_device(device: str | torch.device | None) -> None:
    """Raises ``MergeError`` for a device that this machine or this torch does not have."""
    import torch

    try:
        torch.empty(1, device=device or "cpu").add(1)
    except (RuntimeError, AssertionError) as error:
        first = str(error).split("\n")[0]
        raise MergeError(
            f"device '{printable(str(device), 100)}' cannot be used: {printable(first, 300)}"
        ) from None


@contextmanager
def open_model(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    allow_pickle: bool = False,
) -> Iterator[Loaded]:
    """Loads a model and its tokenizer; its memory is free again on leaving, whoever still refers to it.

    Args:
        path: a folder, a ``.safetensors`` file in one, or a Hub id; with ``+ADAPTER`` behind it the sum.
        device: where it runs; the CPU by default.
        dtype: what it computes in; float32 by default, also for bfloat16 checkpoints: rounding to 8 bits
            (relative error 2^-9 in every operation) is as large as what siblings differ by, and on most CPUs
            it is slower too.
        allow_pickle: read files of ``torch.save`` too; nothing of them is run. They, and sums with adapters,
            are written to a temporary folder as safetensors while the model is loaded.

    Raises:
        CheckpointError: there is no such model, transformers cannot load it without running its code, or its
            weights do not fill it.
    """
    import torch

    check_device(device)
    checkpoint = open_source(os.fspath(path), allow_pickle=allow_pickle)
    try:
        _check_config(checkpoint)
        with tempfile.TemporaryDirectory(prefix="merge-models-") as name:
            clean = Path(name)
            has_tokenizer = lay_out_model(checkpoint, clean)
            with quiet():
                model = _load_model(checkpoint, clean, dtype or torch.float32)
                tokenizer = _load_tokenizer(checkpoint, clean) if has_tokenizer else None
            model.to(device or "cpu").eval().requires_grad_(False)
            try:
                yield Loaded(model, tokenizer, kind_of(model))
            finally:
                model.to("meta")
                release()
    finally:
        checkpoint.close()


def kind_of(model: Any) -> Kind:
    """Returns what a module is: by what transformers says of it, ``module`` for anything else."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return "module"
    return "causal" if type(model).__name__.endswith(_CAUSAL) else "encoder"


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' bars and remarks off the terminal: what matters is raised."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _check_config(checkpoint: DiskSource) -> None:
    """Refuses configs that no model of these tensors has, before anything is built from them."""
    label, config = checkpoint.label, checkpoint.config or read_json(checkpoint.folder / "config.json")
    if not config:
        raise CheckpointError(
            f"{label}: has no config.json, so no model can be built; evaluate a folder as transformers writes"
            " it, or modules in memory (diagnose_modules)"
        )
    if "quantization_config" in config:
        raise CheckpointError(f"{label}: is quantised; evaluate the model in full precision")
    deepest = max(stacks(checkpoint.tensors).values(), default=0)
    bounds = {True: max(_MAX_LAYERS, deepest), False: _MAX_SIZE}
    for key, value in _numbers(config):
        if "theta" not in key and value > bounds["layer" in key]:
            raise CheckpointError(
                f"{label}: config.json's {printable(key)} = {value} does not fit its tensors; mend it"
            )


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            yield key, value


def _load_model(checkpoint: DiskSource, clean: Path, dtype: torch.dtype) -> Any:
    model_class = _model_class(checkpoint.label, read_json(clean / "config.json"))
    try:
        model, loading = model_class.from_pretrained(
            str(clean),
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises whatever its many models do
        raise CheckpointError(
            f"{checkpoint.label}: does not load ({_reason(error, clean)}); check that transformers loads it"
        ) from None
    missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
    wrong = [*missing, *sorted(str(item[0]) for item in loading["mismatched_keys"])]
    if wrong:
        raise CheckpointError(
            f"{checkpoint.label}: {len(wrong)} weights of {model_class.__name__} are missing or have another"
            f" shape ('{printable(wrong[0])}'); the folder's weights and config do not belong together"
        )
    if kind_of(model) == "encoder":
        model = model.base_model
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()  # the decoder has nothing to decode: its encoder is what is measured
    return model


def _model_class(label: str, config: Mapping[str, Any]) -> Any:
    """The class that the config names, where transformers has it; else what it has for the model type."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    named = config.get("architectures")
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    model_class = getattr(transformers, name, None) if name.isidentifier() else None
    if isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel):
        return model_class
    kind = config.get("model_type")
    if not name and kind in auto.MODEL_MAPPING_NAMES:
        masked = kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        causal = kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not masked
        return transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    raise CheckpointError(
        f"{label}: transformers {transformers.__version__} has no model '{printable(name or str(kind))}', and"
        " code that comes with a model is not run; upgrade transformers, or evaluate modules in memory"
        " (diagnose_modules)"
    )


def _load_tokenizer(checkpoint: DiskSource, clean: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(clean), local_files_only=True, trust_remote_code=False)
    except BaseException as error:  # a panic of the compiled tokenizers is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{checkpoint.label}: its tokenizer does not load ({_reason(error, clean)}); add its files"
        ) from None


def _reason(error: BaseException, clean: Path) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return printable(lines[0].replace(str(clean), "the folder"), 200)
