"""How a tokenizer turns a text into ids, with and without the special tokens that it puts around it."""

from __future__ import annotations

from typing import Any


class Encoder:
    """A tokenizer's ids of a text.

    Attributes:
        prefix, suffix: the special tokens that it puts before and behind every text.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        bare, whole = self.bare("a"), self._ids("a", True)
        start = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), 0)
        self.prefix = whole[:start]
        self.suffix = whole[start + len(bare) :]

    def bare(self, text: str) -> list[int]:
        """Returns ids of the text alone."""
        return self._ids(text, False)

    def opened(self, text: str) -> list[int]:
        """Returns ids of a text that may go on: with the special tokens before it, without those behind
        it."""
        return [*self.prefix, *self.bare(text)]

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
