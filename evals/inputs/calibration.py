"""Calibration text: what every model of an evaluation is fed, cut into sequences of one length.

The built-in text (``evals/data/calibration``) was written for this project in four domains: prose, code,
maths and languages. A user's own text is a ``.jsonl`` file (one object a line: ``text``, and a ``domain`` if
there are several) or a text file, whose documents are separated by lines that hold ``SEPARATOR`` alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from merge_models.evals.inputs.encoding import Encoder
from merge_models.evals.inputs.jsonl import read_rows, read_text
from merge_models.evals.inputs.positions import LENGTH
from merge_models.evals.schema import Calibration
from merge_models.merge.checkpoint.sources.lora import open_model
from merge_models.merge.checkpoint.tokenizers import load_tokenizer
from merge_models.merge.errors import MergeError, printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUILT_IN = "built-in"
SEPARATOR = "<<<>>>"
LEAST_TOKENS = 1024
"""Less text than this (or than was asked for, if that is less) is refused."""

MAX_DOMAINS = 64
Part = Literal["all", "fit", "held-out"]
_HELD_OUT = 4
_COMPARED = 32
"""Documents of each domain on which tokenizers are compared."""

_DATA = Path(__file__).parent.parent / "data" / "calibration"


@dataclass(frozen=True)
class Text:
    """Documents by domain, and the SHA-256 of the files that they were read from."""

    source: str
    domains: Mapping[str, tuple[str, ...]]
    digest: str


@dataclass(frozen=True)
class Batches:
    """Token ids of equally long sequences.

    Attributes:
        ids: by domain, int64 [sequences, length]. Each sequence begins, and ends, with the special tokens
            that the tokenizer puts around a text; no sequence is padded.
        record: what they are, for the report.
        unknown: share of the tokens that are the tokenizer's unknown token.
        text: what they were cut from.
    """

    ids: Mapping[str, np.ndarray]
    record: Calibration
    unknown: float
    text: Text

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        return next(iter(self.ids.values())).shape[1]

    def batches(self, size: int = 8) -> Iterator[tuple[str, np.ndarray]]:
        """Yields the sequences in order, at most ``size`` of one domain at a time: (domain, [<= size,
        length])."""
        for domain, ids in self.ids.items():
            for start in range(0, len(ids), size):
                yield domain, ids[start : start + size]


def read_calibration(source: str | os.PathLike[str] = BUILT_IN) -> Text:
    """Returns the documents of the built-in text or of a user's file.

    Raises:
        MergeError: the file cannot be read or is not what this module's docstring says.
    """
    if source == BUILT_IN:
        files = sorted(_DATA.glob("*.txt"))
        documents = [
            (file.stem.partition("-")[0], text) for file in files for text in _documents(read_text(file))
        ]
        return Text(BUILT_IN, _by_domain(documents), _digest(files))
    file = Path(source)
    if file.suffix in (".jsonl", ".ndjson"):
        documents = [(row.optional("domain", "text"), row.text("text")) for row in read_rows(file)]
    else:
        documents = [("text", text) for text in _documents(read_text(file))]
    domains = _by_domain(documents)
    if len(domains) > MAX_DOMAINS:
        raise MergeError(
            f"{printable(str(file), 400)}: has {len(domains)} domains; use at most {MAX_DOMAINS}, or leave"
            " 'domain' out"
        )
    return Text(file.name, domains, _digest([file]))


def calibration_batches(
    tokenizer: PreTrainedTokenizerBase,
    *,
    source: str | os.PathLike[str] | Text = BUILT_IN,
    tokens: int = 8192,
    length: int = LENGTH,
    seed: int = 0,
    part: Part = "all",
) -> Batches:
    """Tokenizes text into sequences of ``length`` tokens, ``tokens`` in all, the domains in equal parts.

    Documents come in an order drawn from ``seed``. Each gives its first sequence before any gives its second.
    What a document leaves over, or is too short for, is joined with what others leave, so that no text is
    lost to shortness. A domain with too little text leaves its part to the others.

    Args:
        tokenizer: the merge's; all models of the evaluation must share it (``check_same_tokenizer``).
        source: ``built-in``, a ``.jsonl`` or text file, or what ``read_calibration`` returned.
        tokens: how many in all, special ones included; rounded down to whole sequences.
        length: of a sequence; at most what the tokenizer says that the model takes.
        seed: of the order of documents.
        part: ``fit`` and ``held-out`` are disjoint: every fourth sequence of a domain is held out.

    Raises:
        MergeError: the file is bad, or its text gives fewer tokens than ``LEAST_TOKENS`` and ``tokens``.
    """
    text = source if isinstance(source, Text) else read_calibration(source)
    length = min(length, _longest(tokenizer))
    encoder = Encoder(tokenizer)
    prefix, suffix = encoder.prefix, encoder.suffix
    room = length - len(prefix) - len(suffix)
    if room < 2 or tokens < length:
        raise MergeError(
            f"{tokens} calibration tokens in sequences of {length} leave no room for text; ask for sequences"
            f" of at least {len(prefix) + len(suffix) + 2} tokens and for one sequence or more"
        )
    streams = {
        domain: _of_part(part, _sequences(documents, encoder.bare, room, Random(f"{seed} {domain}")))
        for domain, documents in text.domains.items()
    }
    drawn = _take_turns(streams, tokens // length)
    ids = {
        domain: np.array([[*prefix, *sequence, *suffix] for sequence in sequences], dtype=np.int64)
        for domain, sequences in drawn.items()
        if sequences
    }
    count = sum(map(len, ids.values()))
    needed = min(tokens // length * length, LEAST_TOKENS)
    if count * length < needed:
        raise MergeError(
            f"{printable(text.source)}: too little text: {count} sequences of {length} tokens, and {needed}"
            " tokens are needed; give more text, or shorter sequences"
        )
    record = Calibration(
        source=text.source,
        digest=text.digest,
        sequences=count,
        tokens=count * (length - 1),
        seed=seed,
        domains={domain: len(of_domain) * (length - 1) for domain, of_domain in ids.items()},
        unigram_entropy={domain: _entropy(of_domain[:, 1:]) for domain, of_domain in ids.items()},
    )
    return Batches(ids, record, _share_of(getattr(tokenizer, "unk_token_id", None), ids), text)


def _entropy(ids: np.ndarray) -> float:
    """Entropy of the tokens' frequencies, in nats."""
    frequencies = np.unique(ids, return_counts=True)[1] / ids.size
    return float(-(frequencies * np.log(frequencies)).sum())


def _share_of(token: int | None, ids: Mapping[str, np.ndarray]) -> float:
    if token is None:
        return 0.0
    everything = np.concatenate(list(ids.values()))
    return float((everything == token).mean())


def check_same_tokenizer(
    models: Sequence[str | os.PathLike[str]],
    text: Text | None = None,
    otherwise: str = "",
    *,
    allow_pickle: bool = False,
) -> Any:
    """Checks that all models' tokenizers turn the text into the same tokens, and returns the first one's.

    Args:
        models: folders or Hub ids.
        text: what to compare them on; by default the built-in text.
        otherwise: what the user may do where a model has no tokenizer, besides adding it.
        allow_pickle: whether weights may be files of ``torch.save``; they are not read here.

    Raises:
        MergeError: one does not, or cannot be loaded; the text names the model and what to do.
    """
    text = text or read_calibration()
    documents = [document for of_domain in text.domains.values() for document in of_domain[:_COMPARED]]
    first = _tokenizer_of(models[0], otherwise, allow_pickle)
    expected = list(map(Encoder(first).bare, documents))
    for model in models[1:]:
        tokenizer = _tokenizer_of(model, otherwise, allow_pickle)
        for document, wanted, found in zip(
            documents, expected, map(Encoder(tokenizer).bare, documents), strict=True
        ):
            if wanted != found:
                raise MergeError(_difference(models[0], model, tokenizer, document, wanted, found))
    return first


def _tokenizer_of(model: str | os.PathLike[str], otherwise: str, allow_pickle: bool) -> Any:
    with closing(open_model(os.fspath(model), allow_pickle=allow_pickle)) as checkpoint:
        return load_tokenizer(checkpoint, otherwise).tokenizer


def _difference(
    first: object, model: object, tokenizer: Any, text: str, ours: list[int], theirs: list[int]
) -> str:
    shorter = min(len(ours), len(theirs))
    place = next((i for i in range(shorter) if ours[i] != theirs[i]), shorter)
    after = tokenizer.decode(theirs[max(0, place - 4) : place])
    return (
        f"{printable(str(model))}: its tokenizer cuts text otherwise than that of {printable(str(first))}"
        f" (after '{printable(after, 40)}' in '{printable(text, 40)}'), so their activations and predictions"
        " cannot be compared token by token; leave this model out, or compare weights and task scores only"
    )


def _documents(text: str) -> list[str]:
    parts = "\n".join(["", *text.split("\n"), ""]).split(f"\n{SEPARATOR}\n")
    return [part.strip("\n") for part in parts if part.strip()]


def _by_domain(found: Sequence[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    domains: dict[str, list[str]] = {}
    for domain, text in found:
        domains.setdefault(domain, []).append(text)
    return {domain: tuple(texts) for domain, texts in domains.items()}


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for file in files:
        total.update(file.read_bytes())
    return total.hexdigest()


def _longest(tokenizer: Any) -> int:
    """The tokenizer's limit. Transformers says 10^30 where there is none."""
    longest = getattr(tokenizer, "model_max_length", None)
    return longest if isinstance(longest, int) and 0 < longest < 1 << 24 else 1 << 24


def _sequences(
    documents: Sequence[str], encode: Callable[[str], list[int]], room: int, random: Random
) -> Iterator[list[int]]:
    """Sequences of ``room`` ids: every document's first, then the rest of each and what was left over."""
    order = random.sample(range(len(documents)), len(documents))
    left: list[int] = []
    for index in order:
        ids = encode(documents[index])
        if len(ids) >= room:
            yield ids[:room]
            continue
        left += ids
        if len(left) >= room:
            yield left[:room]
            left = left[room:]
    for index in order:
        ids = encode(documents[index])
        whole = len(ids) // room * room
        yield from (ids[start : start + room] for start in range(room, whole, room))
        if whole:
            left += ids[whole:]
        while len(left) >= room:
            yield left[:room]
            left = left[room:]


def _of_part(part: Part, sequences: Iterator[list[int]]) -> Iterator[list[int]]:
    if part == "all":
        return sequences
    held_out = part == "held-out"
    numbered = enumerate(sequences)
    return (ids for number, ids in numbered if (number % _HELD_OUT == _HELD_OUT - 1) == held_out)


def _take_turns(streams: Mapping[str, Iterator[list[int]]], count: int) -> dict[str, list[list[int]]]:
    """``count`` sequences, one of each stream in turn, as long as there are any."""
    drawn: dict[str, list[list[int]]] = {domain: [] for domain in streams}
    alive = dict(streams)
    left = count
    while left and alive:
        for domain in list(islice(alive, left)):
            sequence = next(alive[domain], None)
            if sequence is None:
                del alive[domain]
            else:
                drawn[domain].append(sequence)
                left -= 1
    return drawn
