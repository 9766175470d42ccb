"""Whether models can be merged as they are, from headers, configs and tokenizer files alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.guard import MAX_JSON, check_inside, is_file, read_json
from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.errors import MergeError

UNION = "add 'tokenizer: {source: union}' to the recipe"

_SAME_FUNCTION = (
    "model_type", "hidden_act", "hidden_activation", "activation_function", "num_attention_heads",
    "num_key_value_heads", "head_dim", "n_head", "position_embedding_type",
)  # fmt: skip
"""Settings that give tensors of equal shapes another meaning: with other values, a mean means nothing."""

_SAME_BEHAVIOUR = (
    "rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon",
    "max_position_embeddings", "sliding_window", "tie_word_embeddings", "quantization_config",
)  # fmt: skip
"""Settings of which the merge can take but one value: the base's, else the first model's."""

_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
_EMBEDDINGS = ("embed", "wte", "lm_head", "embed_out", "shared.weight")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Finding:
    """One line about two models.

    Attributes:
        text: the line, with the fix.
        blocks: whether a merge as they are would fail or be of no use.
        blocks_measuring: whether too little is alike to measure anything.
        vocabulary: whether it is about tokens.
    """

    text: str
    blocks: bool = True
    blocks_measuring: bool = False
    vocabulary: bool = False


def compare_headers(models: Sequence[Source], names: Sequence[str]) -> list[Finding]:
    """Compares every model with the first one; reads no weights."""
    found: list[Finding] = []
    for model, name in zip(models[1:], names[1:], strict=True):
        found += _tensors(models[0], model, names[0], name)
        found += _configs(models[0].config, model.config, names[0], name)
        found += _tokenizers(models[0], model, names[0], name)
    return found + list(_stored(models, names))


def _tensors(first: Source, other: Source, name: str, other_name: str) -> Iterator[Finding]:
    missing = [key for key in first.tensors if key not in other.tensors]
    extra = [key for key in other.tensors if key not in first.tensors]
    for keys, lacking, having in ((missing, other_name, name), (extra, name, other_name)):
        heads = [key for key in keys if key.endswith(_HEADS)]
        rest = [key for key in keys if key not in heads]
        if heads:
            yield Finding(
                f"{lacking} has no '{printable(heads[0])}', which {having} has: tied to the embeddings there;"
                " the merge stores it for itself",
                blocks=False,
            )
        if rest:
            more = f" and {len(rest) - 1} more" if len(rest) > 1 else ""
            yield Finding(
                f"{lacking} has no tensor '{printable(rest[0])}'{more}, which {having} has: merge models of"
                " one architecture, saved with all their weights"
            )
    shared = [(info, other.tensors[key]) for key, info in first.tensors.items() if key in other.tensors]
    differing = [(a, b) for a, b in shared if a.shape != b.shape]
    rows = [(a, b) for a, b in differing if is_vocabulary(a, b)]
    if rows:
        a, b = rows[0]
        yield Finding(
            f"vocabularies differ: '{printable(a.name)}' has {a.shape[0]} rows in {name}, {b.shape[0]} in"
            f" {other_name}; {UNION}",
            vocabulary=True,
        )
    others = [pair for pair in differing if pair not in rows]
    if others:
        a, b = others[0]
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        yield Finding(
            f"'{printable(a.name)}' is {list(a.shape)} in {name}, {list(b.shape)} in {other_name}{more}:"
            " merge models of one architecture and size"
        )
    alike = sum(a.count for a, b in shared if a.shape == b.shape)
    total = sum(info.count for info in first.tensors.values())
    if alike < total / 2:
        yield Finding(
            f"{other_name} shares {100 * alike / max(total, 1):.0f} % of {name}'s weights by name and shape:"
            " they are different models",
            blocks_measuring=True,
        )


def is_vocabulary(a: TensorInfo, b: TensorInfo) -> bool:
    """Returns whether both are tables with a row a token, perhaps of other numbers of tokens."""
    named = any(part in a.name for part in _EMBEDDINGS) and "position" not in a.name
    return named and len(a.shape) == len(b.shape) == 2 and a.shape[1] == b.shape[1]


def _configs(
    first: Mapping[str, Any], other: Mapping[str, Any], name: str, other_name: str
) -> Iterator[Finding]:
    if not first or not other:
        return
    for key in (*_SAME_FUNCTION, *_SAME_BEHAVIOUR):
        ours, theirs = first.get(key), other.get(key)
        if ours == theirs or ours is None or theirs is None:
            continue
        both = f"{key} is {_show(ours)} in {name}, {_show(theirs)} in {other_name}"
        if key in _SAME_FUNCTION:
            yield Finding(f"{both}: equal shapes mean different functions there; merge models of one kind")
        else:
            yield Finding(f"{both}: the merge has the base's, else the first model's", blocks=False)


def _show(value: object) -> str:
    return printable(str(value), 60)


def _stored(models: Sequence[Source], names: Sequence[str]) -> Iterator[Finding]:
    """Storage: dtypes side by side, and weights that are no floating numbers."""
    dtypes: dict[str, list[str]] = {}
    for model, name in zip(models, names, strict=True):
        counts: dict[str, int] = {}
        for info in model.tensors.values():
            counts[info.dtype.torch_name] = counts.get(info.dtype.torch_name, 0) + info.count
        packed = sum(n for key, n in counts.items() if key.startswith(("int", "uint", "bool")))
        if packed > sum(counts.values()) / 4:
            yield Finding(
                f"{name} stores {100 * packed / sum(counts.values()):.0f} % of its numbers as integers:"
                " quantized weights cannot be merged; take the original model"
            )
        most = max(counts, key=lambda key: counts[key], default="nothing")
        dtypes.setdefault(most, []).append(name)
    if len(dtypes) > 1:
        text = ", ".join(f"{' and '.join(who)} in {dtype}" for dtype, who in dtypes.items())
        yield Finding(
            f"stored as {text}: merged in float64, rounded once to the dtype asked for", blocks=False
        )


def _tokenizers(first: Source, other: Source, name: str, other_name: str) -> Iterator[Finding]:
    folders = [getattr(model, "tokenizer_folder", None) for model in (first, other)]
    if not all(isinstance(folder, Path) for folder in folders):
        return
    try:
        ours, theirs = (_tokenizer_file(folder) for folder in folders if folder is not None)
        if ours is None or theirs is None:
            if (ours is None) != (theirs is None):
                lacking = name if ours is None else other_name
                yield Finding(f"{lacking} has no tokenizer: the merge has the base's, else the first model's",
                              blocks=False, vocabulary=True)  # fmt: skip
            return
        if _digest(ours) == _digest(theirs):
            return
        if ours.name != "tokenizer.json" or theirs.name != "tokenizer.json":
            yield Finding(
                f"tokenizer files of {name} and {other_name} differ ({ours.name}, {theirs.name}): if their"
                f" tokens do, {UNION}",
                blocks=False,
                vocabulary=True,
            )
            return
        yield from _vocabularies(_vocabulary(ours), _vocabulary(theirs), name, other_name)
    except MergeError as error:
        yield Finding(str(error), vocabulary=True)


def _tokenizer_file(folder: Path) -> Path | None:
    for name in _TOKENIZER_FILES:
        file = check_inside(folder, name)
        if is_file(file):
            return file
    return None


def _digest(file: Path) -> bytes:
    if file.stat().st_size > MAX_JSON:
        raise MergeError(f"{file}: larger than {MAX_JSON >> 20} MiB; refused")
    return hashlib.sha256(file.read_bytes()).digest()


def _vocabulary(file: Path) -> dict[str, int]:
    """Ids by token of a ``tokenizer.json``: its model's vocabulary and the tokens added to it."""
    content = read_json(file)
    model = content.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    ids: dict[str, int] = {}
    if isinstance(vocab, dict):
        ids = {token: number for token, number in vocab.items() if isinstance(number, int)}
    elif isinstance(vocab, list):  # unigram models: pairs of token and score, in order of id
        ids = {str(pair[0]): number for number, pair in enumerate(vocab) if isinstance(pair, list) and pair}
    added = content.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            ids[str(token.get("content"))] = token["id"]
    return ids


def _vocabularies(
    ours: Mapping[str, int], theirs: Mapping[str, int], name: str, other_name: str
) -> Iterator[Finding]:
    moved = [token for token, number in ours.items() if token in theirs and theirs[token] != number]
    if moved:
        yield Finding(
            f"tokenizers of {name} and {other_name} number {len(moved)} of {len(ours)} tokens differently"
            f" ({_show(repr(moved[0]))}): rows of different tokens would be mixed; {UNION}",
            vocabulary=True,
        )
    for mine, yours, having, lacking in ((ours, theirs, name, other_name), (theirs, ours, other_name, name)):
        only = [token for token in mine if token not in yours]
        if only:
            yield Finding(
                f"{len(only)} tokens of {having} are not in {lacking} ({_show(repr(only[0]))}): {UNION}",
                blocks=False,
                vocabulary=True,
            )
