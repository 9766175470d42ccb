"""What a recipe says of the output's tokenizer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelToken(_Strict):
    """A row of a model's embeddings, by token or by number."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_of_two(self) -> ModelToken:
        if (self.token is None) == (self.token_id is None):
            raise ValueError("needs token or token_id, not both")
        return self


class ZeroToken(_Strict):
    """A row of zeros."""

    kind: Literal["zero"]


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("kind"))
    return getattr(value, "kind", "name")


RowSource = Annotated[
    Annotated[str, Tag("name")]
    | Annotated[ModelToken, Tag("model_token")]
    | Annotated[ZeroToken, Tag("zero")],
    Discriminator(
        _kind, custom_error_type="kind", custom_error_message="is a model, or has kind model_token or zero"
    ),
]


class TokenSetting(_Strict):
    """Where a token's row comes from in models that lack it, or (``force``) in all of them."""

    source: RowSource | None = None
    force: bool = False


class TokenizerSettings(_Strict):
    """The ``tokenizer:`` block of a recipe.

    Attributes:
        source: ``union``, ``base`` or a model, whose tokenizer the output gets.
        tokens: rows of single tokens.
        pad_to_multiple_of: rows of the output's embeddings are a multiple of this.
    """

    source: str = "union"
    tokens: dict[str, TokenSetting] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = Field(default=None, ge=1)

    def model_names(self) -> list[str]:
        """Returns every model named."""
        names = [] if self.source in ("union", "base") else [self.source]
        for setting in self.tokens.values():
            if isinstance(setting.source, str):
                names.append(setting.source)
            elif isinstance(setting.source, ModelToken):
                names.append(setting.source.model)
        return list(dict.fromkeys(names))


KINDS: dict[str, type[BaseModel]] = {"model_token": ModelToken, "zero": ZeroToken}


def parts_of(value: Any) -> list[tuple[str, Any, type[BaseModel]]]:
    """Returns (where, map, kind) of every map in a tokenizer block, for the check of its keys."""
    found: list[tuple[str, Any, type[BaseModel]]] = [("tokenizer", value, TokenizerSettings)]
    tokens = value.get("tokens")
    for token, setting in tokens.items() if isinstance(tokens, dict) else ():
        if isinstance(setting, dict):
            found.append((f"tokenizer: tokens: {token}", setting, TokenSetting))
            source = setting.get("source")
            if isinstance(source, dict):
                kind = KINDS.get(str(source.get("kind")), ModelToken)
                found.append((f"tokenizer: tokens: {token}: source", source, kind))
    return found
