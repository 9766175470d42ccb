"""The head of a model whose head is its embedding, where an adapter trains one of the two.

PEFT trains them apart from then on, and the other one keeps the base's table; unless ``ensure_weight_tying``
is set.
"""

from __future__ import annotations

from dataclasses import dataclass

from merge_models.merge.checkpoint.header import TensorInfo
from merge_models.merge.checkpoint.sources.source import Source
from merge_models.merge.checkpoint.sources.tied import EMBEDDINGS, HEADS, says_tied

_CAUSAL = ("ForCausalLM", "LMHeadModel")
_OTHERS = ("ForMaskedLM", "ForPreTraining", "ForConditionalGeneration")


@dataclass(frozen=True)
class TiedHead:
    """A head that is an embedding.

    Attributes:
        name: what a head of its own is called.
        embedding: the table that both are.
        stored: whether the head is stored beside it all the same.
        exists: whether the model is known to have it: an encoder may have none.
        elsewhere: whether it is of a kind that is called otherwise, or used otherwise once untied.
    """

    name: str
    embedding: TensorInfo
    stored: bool
    exists: bool
    elsewhere: bool


def tied_head(model: Source) -> TiedHead | None:
    """Returns the tied head of a model; None where it has a head of its own, or not one embedding."""
    stored = next((name for name in HEADS if name in model.tensors), None)
    embeddings = [name for name in model.tensors if name.endswith(EMBEDDINGS)]
    said = says_tied(model.config, stored or HEADS[0])
    if len(embeddings) != 1 or said is False or (stored and not said):
        return None
    embedding = model.tensors[embeddings[0]]
    name = stored or ("embed_out.weight" if embedding.name.endswith("embed_in.weight") else HEADS[0])
    kinds = model.config.get("architectures")
    kind = str(kinds[0]) if isinstance(kinds, list) and kinds else ""
    exists = stored is not None or kind.endswith(_CAUSAL)
    return TiedHead(name, embedding, stored is not None, exists, kind.endswith(_OTHERS))
