"""Where each row of the output's embeddings comes from, in every model.

Rules, for a token that a model lacks: its only owner's row; else the base's; else the mean over the owners; a
row of zeros where no model has it. Settings of single tokens come before the rules, and with ``force`` before
a model's own row. Rows beyond the tokens (padding) are tokens without a name: row ``i`` of the output stands
for row ``i`` of every model whose row ``i`` is padding too.

The output has as many rows as the tokenizer's own model, padding included; after a union as many as the
largest model, or as the tokens need. ``pad_to_multiple_of`` counts from the tokens alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from merge_models.merge.checkpoint.header import TensorInfo, printable
from merge_models.merge.checkpoint.layers import place_of
from merge_models.merge.checkpoint.sidecars import resized_config
from merge_models.merge.checkpoint.sources.rows import MEAN, ZERO, GatheredRows, RowMap
from merge_models.merge.checkpoint.sources.source import DiskSource
from merge_models.merge.checkpoint.sources.tied import EMBEDDINGS, HEADS, find_tensor, untied
from merge_models.merge.checkpoint.tokenizers import LoadedTokenizer, load_tokenizer
from merge_models.merge.errors import PlanError, RecipeError, did_you_mean
from merge_models.merge.tokenizer.build import union, with_tokens
from merge_models.merge.tokenizer.settings import ModelToken, TokenizerSettings, TokenSetting, ZeroToken

_MORE = ("embed_tokens_per_layer.weight", "lm_head.bias", "embed_out.bias")
_TABLES = tuple(f".{name}" for name in (*EMBEDDINGS, *HEADS, *_MORE))
_ID_ENDS = ("_token_id", "_token_ids", "_token_index")


@dataclass(frozen=True)
class Alignment:
    """Models brought to one vocabulary.

    Attributes:
        models: the models, with rows in the output's order.
        tokenizer: the output's tokenizer, as transformers has it.
        ids: its ids.
        donor_ids: the ids of the donor's tokenizer.
        rows: rows of the output's embeddings.
        source: what the recipe calls the tokenizer.
    """

    models: tuple[DiskSource, ...]
    tokenizer: Any
    ids: Mapping[str, int]
    donor_ids: Mapping[str, int]
    rows: int
    source: str

    def remapped(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a config of the donor's with its token ids (``eos_token_id``, ...) as they are now."""
        names = {number: token for token, number in self.donor_ids.items()}

        def now(key: str, number: Any) -> Any:
            if not isinstance(number, int) or number not in names:
                return number
            if names[number] in self.ids:
                return self.ids[names[number]]
            return getattr(self.tokenizer, key, None) if key.endswith("_token_id") else None

        result = dict(config)
        for key, value in config.items():
            if isinstance(value, dict):
                result[key] = self.remapped(value)
            elif key.endswith(_ID_ENDS) and isinstance(value, list):
                result[key] = [number for number in (now("", item) for item in value) if number is not None]
            elif key.endswith(_ID_ENDS):
                result[key] = now(key, value)
        return result


def align(
    settings: TokenizerSettings,
    models: Sequence[DiskSource],
    base: int | None,
    donor: int,
    aides: Sequence[DiskSource] = (),
) -> Alignment:
    """Makes the output's tokenizer and brings all models to it.

    Args:
        settings: the recipe's.
        models: the models of the merge.
        base: index of the base, or None.
        donor: index of the model that gives the config.
        aides: other models that the settings name.

    Raises:
        MergeError: a model has no tokenizer or no embeddings, or a setting names what is not there.
    """
    everyone = [*models, *aides]
    loaded = [load_tokenizer(model, "leave 'tokenizer' out of the recipe") for model in everyone]
    ids = [tokenizer.ids for tokenizer in loaded]
    chosen, source = _output_tokenizer(settings, loaded, len(models), donor)
    names = _tables(models, ids)
    counts = [max(_rows(model, names), default=0) for model in models]
    size = max(chosen.ids.values()) + 1
    if settings.pad_to_multiple_of:
        size += -size % settings.pad_to_multiple_of
    else:
        kept = counts if source is None else counts[source : source + 1]
        size = max(size, *kept, 0)
    rules = _Rules(chosen.ids, size, ids, [m.label for m in everyone], len(models), base, settings.tokens)
    infos = {name: tuple(find_tensor(model, name) for model in everyone) for name in names}
    maps = {name: rules.maps(infos[name]) for name in names}
    aligned: list[DiskSource] = []
    for number, model in enumerate(models):
        own = {name: maps[name][number] for name in names if infos[name][number] is not None}
        own = {name: rows for name, rows in own.items() if not _is_same(rows, number, infos[name][number])}
        config = resized_config(model.config, counts[number], size) if model.config else {}
        if any(name not in model.tensors for name in own):
            config = untied(config)  # its head now has rows of others' heads
        aligned.append(GatheredRows(everyone, number, config, own) if own else model)
    return Alignment(tuple(aligned), chosen.tokenizer, chosen.ids, ids[donor], size, settings.source)


def _output_tokenizer(
    settings: TokenizerSettings, loaded: Sequence[LoadedTokenizer], count: int, donor: int
) -> tuple[LoadedTokenizer, int | None]:
    """The tokenizer, and the model that it is of (None for a union)."""
    labels = [tokenizer.label for tokenizer in loaded]
    source = None
    if settings.source == "union":
        order = [donor, *(number for number in range(count) if number != donor)]
        chosen = union([loaded[number] for number in order])
    else:
        source = donor if settings.source == "base" else labels.index(settings.source)
        chosen = loaded[source]
    missing = [token for token in settings.tokens if token not in chosen.ids]
    sourceless = [token for token in missing if settings.tokens[token].source is None]
    if sourceless:
        raise RecipeError(
            f"tokenizer: token '{printable(sourceless[0])}' is in no tokenizer; give it a source, such as"
            " {kind: zero}"
        )
    return (with_tokens(chosen, missing) if missing else chosen), source


def _tables(models: Sequence[DiskSource], ids: Sequence[Mapping[str, int]]) -> list[str]:
    """Names of the tensors with a row per token, in any model."""
    found: dict[str, None] = {}
    for model, own in zip(models, ids, strict=False):
        tables = [n for n in model.tensors if f".{n}".endswith(_TABLES) and place_of(n).layer is None]
        wide = [n for n in tables if 2 * (*model.tensors[n].shape, 0)[0] > len(own)]
        if not wide:
            raise PlanError(
                f"{model.label}: no embeddings found for the {len(own)} tokens of its tokenizer; leave"
                " 'tokenizer' out of the recipe"
            )
        found.update(dict.fromkeys(wide))
    return list(found)


def _rows(model: DiskSource, names: Sequence[str]) -> list[int]:
    return [model.tensors[name].shape[0] for name in names if name in model.tensors]


def _is_same(rows: RowMap, model: int, info: TensorInfo | None) -> bool:
    """Whether the output's rows are the model's own, one for one."""
    count = len(rows.models)
    own = bool((rows.models == model).all()) and bool((rows.rows == np.arange(count)).all())
    return own and info is not None and info.shape[0] == count


class _Rules:
    """The row rules for one output vocabulary."""

    def __init__(
        self,
        ids: Mapping[str, int],
        size: int,
        model_ids: Sequence[Mapping[str, int]],
        labels: Sequence[str],
        count: int,
        base: int | None,
        tokens: Mapping[str, TokenSetting],
    ) -> None:
        self._ids, self._size, self._model_ids, self._labels = ids, size, model_ids, labels
        self._count, self._base, self._tokens = count, base, tokens
        named = np.zeros(size, dtype=bool)
        named[np.fromiter(ids.values(), np.int64, len(ids))] = True
        self._padding = ~named
        self._pairs = [_matching(ids, own) for own in model_ids[:count]]

    def maps(self, infos: Sequence[TensorInfo | None]) -> list[RowMap]:
        """Where the rows of one table come from, for every model of the merge."""
        counts = [0 if info is None else info.shape[0] for info in infos]
        owners = np.full((self._count, self._size), -1, dtype=np.int64)
        for model in range(self._count):
            self._own(owners[model], model, counts[model])
        default_models, default_rows = self._defaults(owners)
        asked = {
            token: (default_models[self._ids[token]], default_rows[self._ids[token]])
            if setting.source is None
            else self._row(token, setting.source, counts)
            for token, setting in self._tokens.items()
        }
        result = []
        for model in range(self._count):
            has = owners[model] >= 0
            models = np.where(has, model, default_models)
            rows = np.where(has, owners[model], default_rows)
            for token, setting in self._tokens.items():
                at = self._ids[token]
                if setting.force or not has[at]:
                    models[at], rows[at] = asked[token]
            result.append(RowMap(models, rows, owners, tuple(infos)))
        return result

    def _own(self, owned: np.ndarray, model: int, count: int) -> None:
        """A model's own row for every output row; its rows beyond its table do not exist."""
        places, numbers = self._pairs[model]
        there = numbers < count
        owned[places[there]] = numbers[there]
        taken = np.zeros(max(count, self._size), dtype=bool)
        own = self._model_ids[model]
        known = np.fromiter(own.values(), np.int64, len(own))
        taken[known[known < len(taken)]] = True
        limit = min(count, self._size)
        free = np.flatnonzero(self._padding[:limit] & ~taken[:limit])
        owned[free] = free

    def _defaults(self, owners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What a model gets that lacks a row: its only owner's, the base's, the mean, zeros."""
        has = owners >= 0
        number = has.sum(axis=0)
        first = has.argmax(axis=0)
        models = np.where(number == 0, ZERO, np.where(number == 1, first, MEAN))
        rows = np.where(number == 1, np.take_along_axis(owners, first[None], axis=0)[0], 0)
        if self._base is not None:
            from_base = (number > 1) & has[self._base]
            models = np.where(from_base, self._base, models)
            rows = np.where(from_base, owners[self._base], rows)
        return models, rows

    def _row(
        self, token: str, source: str | ModelToken | ZeroToken, counts: Sequence[int]
    ) -> tuple[int, int]:
        """The model and row that a setting asks for."""
        if isinstance(source, ZeroToken):
            return ZERO, 0
        name = source if isinstance(source, str) else source.model
        wanted = token if isinstance(source, str) else source.token
        model = self._labels.index(name)
        own = self._model_ids[model]
        number = own.get(wanted) if wanted is not None else getattr(source, "token_id", None)
        if number is None:
            raise RecipeError(
                f"tokenizer: tokens: {printable(token)}: {name} has no token"
                f" '{printable(str(wanted))}'{_near(str(wanted), own)}"
            )
        if number >= counts[model]:
            raise RecipeError(
                f"tokenizer: tokens: {printable(token)}: {name} has {counts[model]} rows, none for {number}"
            )
        return model, number


def _near(word: str, ids: Mapping[str, int]) -> str:
    """A hint, where the vocabulary has a token of the same letters."""
    close = [token for token in ids if word.strip().lower() in token.lower() and len(token) <= len(word) + 2]
    return did_you_mean(word, close[:20]) if close else "; check its spelling in tokenizer.json"


def _matching(ids: Mapping[str, int], own: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """(output ids, model's ids) of the tokens that both have."""
    pairs = [(ids[token], number) for token, number in own.items() if token in ids]
    both = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return both[:, 0], both[:, 1]
