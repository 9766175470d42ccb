"""The built-in calibration text, and how text becomes batches."""

from __future__ import annotations

import ast
import collections
import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from merge_models.evals import Weights, evaluate
from merge_models.evals.inputs.calibration import (
    SEPARATOR,
    calibration_batches,
    check_same_tokenizer,
    read_calibration,
)
from merge_models.merge.cli import main
from merge_models.merge.demo.skills import demo_folder
from merge_models.merge.errors import MergeError
from tests.evals.inputs.texts import Characters
from tests.helpers import ROOT

DATA = ROOT / "evals" / "data" / "calibration"


FILES = sorted(DATA.glob("*.txt"))


DOMAINS = {"prose", "code", "maths", "languages"}


def batches(
    tmp_path: Path, documents: list[str], marks: tuple[tuple[int, ...], ...] = (), **settings: Any
) -> dict[str, list[str]]:
    """The sequences that come of these documents, as text."""
    file = tmp_path / "text.txt"
    file.write_text(f"\n{SEPARATOR}\n".join(documents), encoding="utf-8")
    made = calibration_batches(Characters(*marks), source=file, **settings)
    return {domain: ["".join(map(chr, row)) for row in ids] for domain, ids in made.ids.items()}


def test_the_text_is_large_and_in_every_domain() -> None:
    text = read_calibration()
    sizes = {domain: sum(len(d.encode()) for d in documents) for domain, documents in text.domains.items()}
    assert sizes.keys() == DOMAINS
    assert sum(sizes.values()) >= 200_000
    assert min(sizes.values()) >= 30_000
    assert text.digest == hashlib.sha256(b"".join(file.read_bytes() for file in FILES)).hexdigest()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_are_clean_text(file: Path) -> None:
    text = file.read_bytes().decode("utf-8")
    assert "\r" not in text and "\ufffd" not in text and "\x00" not in text
    assert text.endswith("\n") and not text.endswith("\n\n")
    assert all(c.isprintable() or c in "\n\t\u200c\u200d" for c in text)
    for number, document in enumerate(text.split(f"\n{SEPARATOR}\n")):
        assert len(document.encode()) >= 600, f"document {number} of {file.name} is too short for a sequence"
        assert SEPARATOR not in document


def test_no_paragraph_comes_twice() -> None:
    found = collections.Counter(
        " ".join(paragraph.split())
        for documents in read_calibration().domains.values()
        for document in documents
        for paragraph in document.split("\n\n")
        if len(paragraph) >= 60
    )
    assert [paragraph for paragraph, n in found.items() if n > 1] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_text_is_not_repetitive(file: Path) -> None:
    """English prose shrinks to about 0.44 of its size, code to 0.39; text from a template to under 0.2."""
    data = file.read_bytes()
    assert len(zlib.compress(data, 9)) / len(data) > 0.34


def test_no_long_passage_comes_twice() -> None:
    seen: set[str] = set()
    for documents in read_calibration().domains.values():
        for document in documents:
            passages = {document[i : i + 120] for i in range(0, max(1, len(document) - 120))}
            assert not passages & seen, (passages & seen).pop()
            seen |= passages


def test_python_documents_parse() -> None:
    python = [d for d in read_calibration().domains["code"] if d.startswith(('"""', "#!/usr/bin/env python"))]
    assert len(python) >= 6
    for document in python:
        ast.parse(document)


def test_documents_give_their_first_sequences_before_others_give_a_second(tmp_path: Path) -> None:
    documents = [letter * 30 for letter in "abcd"]
    (found,) = batches(tmp_path, documents, tokens=40, length=10).values()
    assert sorted(row[0] for row in found) == list("abcd")
    (found,) = batches(tmp_path, documents, tokens=120, length=10).values()
    assert collections.Counter("".join(found)) == dict.fromkeys("abcd", 30)


def test_short_documents_are_joined_and_nothing_is_lost(tmp_path: Path) -> None:
    documents = ["abc", "defg", "hijkl", "mn" * 9, "o"]
    (found,) = batches(tmp_path, documents, tokens=30, length=5).values()
    text = "".join(documents)
    assert len(found) == len(text) // 5
    assert not collections.Counter("".join(found)) - collections.Counter(text)


def test_special_tokens_stand_around_every_sequence(tmp_path: Path) -> None:
    (found,) = batches(tmp_path, ["abcdefghij" * 4], ((2,), (3,)), tokens=24, length=8).values()
    assert found == ["\x02abcdef\x03", "\x02ghijab\x03", "\x02cdefgh\x03"]


def test_domains_take_equal_parts_and_fill_in_for_poor_ones(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    rows = [("rich", "x" * 900), ("poor", "y" * 25), ("fair", "z" * 400)]
    file.write_text("\n".join(json.dumps({"domain": d, "text": t}) for d, t in rows), encoding="utf-8")
    made = calibration_batches(Characters(), source=file, tokens=600, length=10)
    assert {domain: len(ids) for domain, ids in made.ids.items()} == {"rich": 29, "poor": 2, "fair": 29}
    assert made.record.sequences == 60 and made.record.tokens == 540
    assert made.record.domains == {"rich": 261, "poor": 18, "fair": 261}
    assert made.record.unigram_entropy == dict.fromkeys(("rich", "poor", "fair"), 0.0)
    assert made.record.source == "text.jsonl"
    assert made.record.digest == hashlib.sha256(file.read_bytes()).hexdigest()


def test_parts_are_disjoint_and_make_up_the_whole(tmp_path: Path) -> None:
    text = "".join(map(chr, range(0x4E00, 0x4E00 + 800)))
    whole, fit, held_out = (
        set(batches(tmp_path, [text], tokens=tokens, length=10, part=part)["text"])
        for part, tokens in (("all", 800), ("fit", 600), ("held-out", 200))
    )
    assert (len(whole), len(fit), len(held_out)) == (80, 60, 20)
    assert not fit & held_out and fit | held_out == whole


def test_the_same_seed_gives_the_same_batches_and_another_gives_others() -> None:
    first, again, other = (calibration_batches(Characters(), seed=seed) for seed in (0, 0, 1))
    assert first.record == again.record
    assert first.ids.keys() == DOMAINS and {ids.shape for ids in first.ids.values()} == {(8, 256)}
    for domain in DOMAINS:
        np.testing.assert_array_equal(first.ids[domain], again.ids[domain])
        assert (first.ids[domain] != other.ids[domain]).any()
    sizes = [len(ids) for _, ids in first.batches(3)]
    assert sizes == [3, 3, 2] * 4


def test_a_real_tokenizer_counts_what_it_does_not_know() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder("base"))
    made = calibration_batches(tokenizer, tokens=2048)
    assert made.length == 64  # what the tokenizer says that the model takes
    assert made.unknown > 0.2
    assert made.ids["prose"].dtype == np.int64


def test_unigram_entropy_is_that_of_the_tokens_fed(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abcd" * 100)
    made = calibration_batches(Characters(), source=file, tokens=360, length=9)
    counts = np.bincount(made.ids["text"][:, 1:].ravel())[97:101]
    assert made.record.unigram_entropy["text"] == pytest.approx(
        -sum(n / counts.sum() * np.log(n / counts.sum()) for n in counts), abs=1e-12
    )
    assert made.record.unigram_entropy["text"] == pytest.approx(np.log(4), abs=1e-3)


def test_too_many_domains_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": "a", "domain": str(i)}) + "\n" for i in range(65)))
    with pytest.raises(MergeError, match="65 domains"):
        read_calibration(file)


@pytest.mark.parametrize("settings", [{"length": 2}, {"tokens": 10}, {"length": 0}])
def test_no_room_for_text_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MergeError, match="no room for text"):
        calibration_batches(Characters((2,), ()), **settings)


def test_models_with_one_tokenizer_pass() -> None:
    tokenizer = check_same_tokenizer([demo_folder(name) for name in ("base", "adding", "sorting")])
    assert len(tokenizer("sort:ab=")["input_ids"]) == 8


def test_a_model_that_cuts_otherwise_is_named(tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(demo_folder("base"), other)
    settings = json.loads((other / "tokenizer.json").read_text())
    vocabulary = settings["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(MergeError, match="other: its tokenizer cuts text otherwise than that of .*base"):
        check_same_tokenizer([demo_folder("base"), other])


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "bare"
    shutil.copytree(demo_folder("base"), other, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(MergeError, match="bare: has no tokenizer; add its files$"):
        check_same_tokenizer([demo_folder("base"), other])
    with pytest.raises(
        MergeError, match="has no tokenizer; add its files, or measure weights alone: --weigh"
    ):
        evaluate(other, [demo_folder("base")])
    assert evaluate(other, [demo_folder("base")], measures=Weights()).weights is not None
    arguments = ["merge", str(other), str(demo_folder("base")), "--eval", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "has no tokenizer; add its files, or leave out --eval" in result.stderr
    assert not (tmp_path / "out").exists()
