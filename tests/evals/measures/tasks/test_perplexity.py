"""Perplexity through a sliding window."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from merge_models.evals.inputs.models import open_model
from merge_models.evals.measures.tasks.perplexity import perplexity, perplexity_texts
from merge_models.merge.demo.skills import SKILLS, demo_folder, held_out
from tests.evals.measures.tasks.models import VOCABULARY, Copier, Letters, Model, Summer, reference, text_of


def test_a_uniform_model_has_the_vocabulary_as_perplexity() -> None:
    marks = perplexity(Model(), [text_of(200, 0), text_of(77, 1)], 64, 32)
    assert marks.count.sum() == 199 + 76
    assert float(marks.value()) == pytest.approx(VOCABULARY, rel=1e-6)
    estimate = marks.estimate(seed=0)
    assert estimate.low == pytest.approx(estimate.high, rel=1e-6)


def test_a_copier_has_perplexity_one_on_repetition() -> None:
    assert float(perplexity(Copier(), [[7] * 100], 16, 8).value()) == pytest.approx(1.0)


def test_perplexity_equals_the_whole_context_reference() -> None:
    model, texts = Summer(), [text_of(150, 5), text_of(90, 6)]
    expected = np.exp(-np.concatenate([reference(model, text) for text in texts]).mean())
    assert float(perplexity(model, texts, 512, 256).value()) == pytest.approx(expected, rel=1e-6)


def test_perplexity_texts_share_the_tokens_and_keep_the_opening_token() -> None:
    documents = {"a": ["x" * 30, "y" * 30], "b": ["z" * 500]}
    texts = perplexity_texts(documents, Letters(opening=(48,)), 100, seed=0)
    assert [sum(map(len, of_domain)) for of_domain in texts.values()] == [50, 50]
    assert all(text[0] == 48 for of_domain in texts.values() for text in of_domain)
    assert texts == perplexity_texts(documents, Letters(opening=(48,)), 100, seed=0)


def test_perplexity_of_a_real_model_equals_float64(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with open_model(demo_folder("sorting"), dtype=torch.float64) as loaded:
        model, tokenizer = loaded.model, loaded.tokenizer
        assert tokenizer is not None
        texts = [tokenizer(p + SKILLS["sorting"].answer(p))["input_ids"] for p in held_out("sorting", 2)]
        texts.append(texts[0] + texts[1])
        losses = []
        for text in texts:
            with torch.inference_mode():
                logits = model(torch.tensor([text])).logits[0, :-1]
            losses.append(nn.functional.cross_entropy(logits, torch.tensor(text[1:]), reduction="none"))
        expected = float(torch.cat(losses).mean().exp())
        assert float(perplexity(model, texts, 64, 32).value()) == pytest.approx(expected, rel=1e-12)
    with open_model(demo_folder("sorting")) as loaded:
        assert float(perplexity(loaded.model, texts, 64, 32).value()) == pytest.approx(expected, rel=1e-5)
