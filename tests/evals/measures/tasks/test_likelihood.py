"""Windows over a text, and likelihoods of its tokens."""

from __future__ import annotations

import numpy as np
import pytest

from merge_models.evals.measures.tasks import likelihood
from merge_models.evals.measures.tasks.likelihood import log_likelihoods, windows
from tests.evals.measures.tasks.models import Summer, reference, text_of


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 16, 31, 64])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (64, 32), (2, 1)])
def test_windows_score_every_token_but_the_first_once(length: int, window: int, stride: int) -> None:
    found = windows(length, window, stride)
    scored = [place for part in found for place in range(part.scored, part.stop)]
    assert scored == list(range(1, length))
    for part in found:
        assert part.start < part.scored and part.stop - part.start <= window
        context = part.scored - part.start
        assert part.start == 0 or context >= max(1, window - stride)


def test_a_window_as_long_as_its_stride_gives_each_token_a_context() -> None:
    """Without overlap a window's first token would have none; it is scored at the end of the one before."""
    assert [(w.start, w.scored, w.stop) for w in windows(6, 2, 1)] == [(i, i + 1, i + 2) for i in range(5)]


def test_likelihoods_equal_a_float64_reference_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Summer()
    texts = [text_of(length, length) for length in (40, 3, 17, 2, 1, 40, 25)]
    found = log_likelihoods(model, texts, 64, 32)
    for text, values in zip(texts, found, strict=True):
        np.testing.assert_allclose(values, reference(model, text), rtol=0, atol=1e-6)
    batches = len(model.calls)
    monkeypatch.setattr(likelihood, "MAX_LOGITS", 1)
    for one, other in zip(found, log_likelihoods(model, texts, 64, 32), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(model.calls) - batches == 6  # one text at a time, the text of one token never


def test_a_sliding_window_sees_what_it_should() -> None:
    model, text = Summer(), text_of(50, 1)
    (found,) = log_likelihoods(model, [text], 16, 8)
    parts = [
        reference(model, text[: part.stop], part.start)[part.scored - part.start - 1 :]
        for part in windows(50, 16, 8)
    ]
    expected = np.concatenate(parts)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    whole = reference(model, text)
    np.testing.assert_allclose(found[:15], whole[:15], rtol=0, atol=1e-6)
    assert np.abs(found[15:] - whole[15:]).max() > 0.1  # the window forgets
