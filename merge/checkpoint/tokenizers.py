"""A model's tokenizer, loaded from a stranger's folder: checked files only, and none of its code."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.clean import lay_out_tokenizer
from merge_models.merge.checkpoint.header import printable
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.errors import CheckpointError

MAX_ROWS = 1 << 24


@dataclass(frozen=True)
class LoadedTokenizer:
    """A model's tokenizer.

    Attributes:
        label: the model, as the user calls it.
        tokenizer: as transformers loads it.
        ids: id of every token.
    """

    label: str
    tokenizer: Any
    ids: Mapping[str, int]

    def added(self) -> dict[str, Any]:
        """Returns the tokens that stand outside the vocabulary proper, with their flags, by id."""
        decoder = sorted(self.tokenizer.added_tokens_decoder.items())
        return {token.content: token for _, token in decoder}


def load_tokenizer(model: DiskSource, otherwise: str = "") -> LoadedTokenizer:
    """Returns a model's tokenizer. No code of the model's is ever run.

    Args:
        model: whose.
        otherwise: what the user may do besides adding it, for the error's text.

    Raises:
        CheckpointError: it has none, or transformers cannot load it as it is.
    """
    from transformers import AutoTokenizer

    advice = f"add its files, or {otherwise}" if otherwise else "add its files"
    clean = tempfile.TemporaryDirectory(prefix="merge-models-")
    try:
        if not lay_out_tokenizer(model.tokenizer_folder, Path(clean.name)):
            raise CheckpointError(f"{model.label}: has no tokenizer; {advice}")
        tokenizer = AutoTokenizer.from_pretrained(clean.name, local_files_only=True, trust_remote_code=False)
        ids = _checked_ids(tokenizer.get_vocab())
    except CheckpointError:
        clean.cleanup()
        raise
    except BaseException as error:
        clean.cleanup()
        # transformers raises whatever its many tokenizers do; a panic of the compiled ones is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(clean.name, "")
        raise CheckpointError(
            f"{model.label}: its tokenizer cannot be loaded ({printable(reason, 160)}); {advice}"
        ) from None
    weakref.finalize(tokenizer, clean.cleanup)  # some copy their files when they are saved
    return LoadedTokenizer(model.label, tokenizer, ids)


def _checked_ids(vocabulary: Mapping[str, int]) -> dict[str, int]:
    """Ids as they are, where they can be rows of a table.

    Raises:
        ValueError: there are none, or one is no whole number below ``MAX_ROWS``.
    """
    ids = dict(vocabulary)
    if not ids or not all(isinstance(number, int) and 0 <= number < MAX_ROWS for number in ids.values()):
        raise ValueError(f"its ids are not whole numbers below {MAX_ROWS}")
    return ids
