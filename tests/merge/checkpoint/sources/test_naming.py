"""Checkpoints of one architecture under different names: matched where there is no doubt, and told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_models.merge import PlanError, prepare, run_recipe
from merge_models.merge.checkpoint.sources.naming import with_names_of_first
from merge_models.merge.checkpoint.sources.source import StateDict
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import parse_recipe
from tests.helpers import read_folder, write_folder


def bare(name: str) -> str:
    return name.removeprefix("transformer.")


def old(name: str) -> str:
    """As TensorFlow's BERT calls layer norms."""
    head, _, last = name.rpartition(".")
    return f"{head}.{ {'weight': 'gamma', 'bias': 'beta'}[last] }" if head.endswith("LayerNorm") else name


def models(family: str) -> tuple[Any, Any, Callable[[str], str]]:
    """Two models of a family, and what the second's tensors are called instead."""
    from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

    kind: Any = GPT2LMHeadModel if family == "gpt2" else BertForMaskedLM
    config: Any = GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=8)
    if family == "bert":
        config = BertConfig(
            vocab_size=11, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8,
        )  # fmt: skip
    made = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        made.append(kind(config))
        for value in made[-1].parameters():
            torch.nn.init.normal_(value)
    return made[0], made[1], bare if family == "gpt2" else old


@pytest.fixture(params=["gpt2", "bert"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path, Path, type]:
    """Folders of a model, of another, and of the other under other names."""
    first, second, rename = models(request.param)
    first.save_pretrained(tmp_path / "a")
    second.save_pretrained(tmp_path / "b")
    state = {rename(name): value for name, value in read_folder(tmp_path / "b").items()}
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    write_folder(tmp_path / "c", state, config=config)
    return tmp_path / "a", tmp_path / "b", tmp_path / "c", type(first)


@pytest.mark.parametrize("turned", [False, True])
def test_other_names_give_the_same_merge(
    turned: bool, pair: tuple[Path, Path, Path, Any], tmp_path: Path
) -> None:
    a, b, c, kind = pair
    order = [c, a] if turned else [a, c]
    recipe = parse_recipe({"merge_method": "linear", "models": [str(path) for path in order]})
    prepared = prepare(recipe)
    (told,) = [remark for remark in prepared.plan.remarks if "under other names" in remark]
    assert told.startswith(f"{order[1]}: ")
    prepared.close()
    run_recipe(recipe, tmp_path / "out")
    plain = [str(b) if path == c else str(path) for path in order]
    run_recipe(parse_recipe({"merge_method": "linear", "models": plain}), tmp_path / "plain")
    out, wanted = read_folder(tmp_path / "out"), read_folder(tmp_path / "plain")
    assert out.keys() == read_folder(order[0]).keys(), "the first model's names"
    loaded, told = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    reference = kind.from_pretrained(tmp_path / "plain").state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in loaded.state_dict().items())
    assert len(out) == len(wanted)
    record = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert {*record["output"]["origins"][1].values()} == read_folder(order[1]).keys()
    assert not verify(tmp_path / "out", inputs=True).problems


def test_layers_of_other_names_are_stacked(pair: tuple[Path, Path, Path, Any], tmp_path: Path) -> None:
    a, b, c, _ = pair
    for name, second in ("out", c), ("plain", b):
        pieces = [{"sources": [{"model": str(m), "layer_range": [0, 2]}]} for m in (a, second)]
        run_recipe(parse_recipe({"merge_method": "passthrough", "slices": pieces}), tmp_path / name)
    out, plain = read_folder(tmp_path / "out"), read_folder(tmp_path / "plain")
    assert out.keys() == plain.keys() and all(torch.equal(out[name], plain[name]) for name in out)


DOUBTFUL: dict[str, tuple[list[str], list[str]]] = {
    "two prefixes": (["a.h.0.w", "b.h.0.w"], ["h.0.w"]),
    "some layers as they are": (["a.h.0.w", "h.0.w"], ["h.0.w", "h.1.w"]),
    "other stacks": (["a.h.0.w"], ["h.0.w", "g.0.w"]),
    "no layers": (["a.w"], ["w"]),
    "both names": (["h.0.LayerNorm.weight"], ["h.0.LayerNorm.weight", "h.0.LayerNorm.gamma"]),
    "no norm": (["h.0.table.weight"], ["h.0.table.gamma"]),
}


@pytest.mark.parametrize("case", DOUBTFUL)
def test_what_is_in_doubt_is_left(case: str) -> None:
    def source(names: list[str]) -> Any:
        values: dict[str, Tensor] = {name: torch.zeros(1) for name in names}
        return StateDict(values, "model")

    first, second = map(source, DOUBTFUL[case])
    (_, found), told = with_names_of_first([first, second])
    assert found is second and not told


def test_what_does_not_match_is_still_told(tmp_path: Path) -> None:
    first = write_folder(tmp_path / "a", {"a.h.0.w": torch.zeros(2), "b.h.0.w": torch.zeros(2)})
    second = write_folder(tmp_path / "b", {"h.0.w": torch.zeros(2)})
    with pytest.raises(PlanError, match="has no tensor"):
        prepare(parse_recipe({"merge_method": "linear", "models": [str(first), str(second)]}))
