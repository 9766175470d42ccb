"""The output's tokenizer: one of the sources', or the union of them all.

A union segments text as its frame does: the first source (the base before others) whose vocabulary holds the
ordinary tokens of all, or the first of all where none does. The frame's tokens keep their ids; tokens that it
lacks follow behind. Tokens that another source *added* are added here with the same flags, and so found in
text as they were there. A source's ordinary tokens join the vocabulary without rules that make them: they
decode, but text is not cut into them, since no one set of rules can cut as two different ones do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from merge_models.merge.checkpoint.tokenizers import LoadedTokenizer
from merge_models.merge.errors import CheckpointError, PlanError

_CALL_KEYS = ("local_files_only", "is_local", "name_or_path", "trust_remote_code")


def union(sources: Sequence[LoadedTokenizer]) -> LoadedTokenizer:
    """Returns a tokenizer with the tokens of all sources; the first source is preferred as its frame.

    Raises:
        PlanError: the frame's kind of tokenizer cannot take the others' tokens.
    """
    frame = _frame(sources)
    others = [source for source in sources if source is not frame]
    additions: dict[str, Any] = {}
    ordinary: dict[str, None] = {}
    frame_added = frame.added()
    for source in others:
        added = source.added()
        for token, flags in added.items():
            if token not in frame_added:
                additions.setdefault(token, flags)
        missing = [token for token in source.ids if token not in frame.ids and token not in added]
        ordinary.update(dict.fromkeys(sorted(missing, key=source.ids.__getitem__)))
    plain = [token for token in ordinary if token not in additions]
    if plain:
        _extend_vocabulary(frame, plain)
    return _with_added(frame, additions.values())


def _frame(sources: Sequence[LoadedTokenizer]) -> LoadedTokenizer:
    ordinary = [source.ids.keys() - source.added().keys() for source in sources]
    everything = set().union(*ordinary)
    for source in sources:
        if everything <= source.ids.keys():
            return source
    return sources[0]


def with_tokens(tokenizer: LoadedTokenizer, tokens: Iterable[str]) -> LoadedTokenizer:
    """Returns the tokenizer with some more tokens, found in text wherever they stand.

    Raises:
        PlanError: it cannot take them.
    """
    from tokenizers import AddedToken

    new = [AddedToken(token, normalized=False) for token in tokens if token not in tokenizer.ids]
    return _with_added(tokenizer, new)


def _with_added(source: LoadedTokenizer, additions: Iterable[Any]) -> LoadedTokenizer:
    """Adds tokens, ordinary and special ones in runs, so that they get their ids in the given order."""
    tokenizer = source.tokenizer
    for special, run in groupby(additions, key=lambda flags: flags.special):
        tokenizer.add_tokens(list(run), special_tokens=special)
    ids = dict(tokenizer.get_vocab())
    moved = [token for token, number in source.ids.items() if ids.get(token) != number]
    if moved or len(set(ids.values())) != len(ids):
        raise PlanError(
            f"{source.label}: its tokenizer has gaps in its ids and cannot take more tokens; choose another"
            " tokenizer: {source: MODEL}"
        )
    return LoadedTokenizer(source.label, tokenizer, ids)


def _extend_vocabulary(frame: LoadedTokenizer, tokens: Sequence[str]) -> None:
    """Puts tokens into the vocabulary proper, behind all; added ones go in too, so that ids stay theirs."""
    from tokenizers import Tokenizer

    backend = getattr(frame.tokenizer, "backend_tokenizer", None)
    data = json.loads(backend.to_str()) if isinstance(backend, Tokenizer) else {"model": {}}
    vocabulary = data["model"].get("vocab")
    ordered = sorted(frame.ids, key=frame.ids.__getitem__)
    if isinstance(vocabulary, dict):
        for token in ordered:
            vocabulary.setdefault(token, frame.ids[token])
        start = max(frame.ids.values()) + 1
        vocabulary.update((token, start + number) for number, token in enumerate(tokens))
    elif isinstance(vocabulary, list) and max(frame.ids.values()) + 1 == len(ordered):
        lowest = min(score for _, score in vocabulary) - 10
        vocabulary += [[token, lowest] for token in [*ordered[len(vocabulary) :], *tokens]]
    else:
        raise PlanError(
            f"{frame.label}: its kind of tokenizer cannot take the {len(tokens)} tokens of others; choose"
            " tokenizer: {source: MODEL}"
        )
    frame.tokenizer._tokenizer = Tokenizer.from_str(json.dumps(data))


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Writes a tokenizer's files.

    Raises:
        CheckpointError: they cannot be written.
    """
    for key in _CALL_KEYS:
        tokenizer.init_kwargs.pop(key, None)
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:  # tokenizers raises nothing more particular
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(
            f"{folder}: the tokenizer cannot be written: {reason}; make room, or choose another disk"
        ) from None
