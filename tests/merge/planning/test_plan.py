"""Plans: how parents fit each other, what is merged, copied or dropped, and what is known before a run."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merge_models.merge import MergeError, PlanError, Prepared, prepare
from merge_models.merge.checkpoint.dtypes import BY_CODE, DType, widest
from merge_models.merge.recipes.recipe import recipe_of
from merge_models.merge.strategies import AbstractStrategy, Linear, TaskArithmetic
from tests.helpers import (
    CONFIG,
    assert_same_bits,
    listing,
    merge_folders,
    merge_states,
    tensors,
    write_folder,
)

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FLOATS = [dtype for dtype in BY_CODE.values() if dtype.is_float]
TIED = {**CONFIG, "tie_word_embeddings": True}


def plan_of(models: Sequence[Path], strategy: AbstractStrategy | None = None, **options: Any) -> Prepared:
    prepared = prepare(recipe_of(strategy or Linear(), models, **options))
    prepared.close()
    return prepared


def refusal(models: Sequence[Path], **options: Any) -> str:
    with pytest.raises(MergeError) as caught:
        plan_of(models, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def without(state: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if key not in names}


# Names and shapes


@pytest.mark.parametrize("place", range(3))
def test_a_tensor_that_one_model_lacks(place: int, tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        lost = ("model.norm.weight", "model.layers.1.mlp.up_proj.weight") if number == place else ()
        paths.append(write_folder(tmp_path / f"m{number}", without(tensors(number), *lost)))
    text = refusal(paths)
    assert f"m{place}: has no tensor '" in text and "which" in text and "(and 1 more)" in text
    assert "'model.norm.weight'" in text or "'model.layers.1.mlp.up_proj.weight'" in text


@pytest.mark.parametrize("extra", ["extra", "model.layers.2.mlp.up_proj.weight"])
def test_a_tensor_that_only_the_base_has_is_dropped_aloud(extra: str, tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / n, tensors(s)) for s, n in enumerate("ab")]
    base = write_folder(tmp_path / "base", {**tensors(5), extra: torch.ones(2)})
    for strategy in (Linear(), TaskArithmetic()):
        plan = plan_of(paths, strategy, base=base).plan
        assert plan.dropped == ((extra, str(base), "only the base has it"),)
        assert {t.name for t in plan.tasks} == set(tensors(0))


def test_a_tensor_that_the_base_lacks(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / n, tensors(s)) for s, n in enumerate("ab")]
    base = write_folder(tmp_path / "base", without(tensors(5), "model.norm.weight"))
    assert "base: has no tensor 'model.norm.weight'" in refusal(paths, strategy=TaskArithmetic(), base=base)
    merged = merge_folders(paths, tmp_path / "out", Linear(), base=base)
    assert merged.keys() == tensors(0).keys()


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((9,), "merge models of"),
        ((8, 1), "merge models of"),
        ((), "merge models of"),
        ((0,), "merge models of"),
    ],
)
def test_shapes_must_agree(shape: tuple[int, ...], words: str, tmp_path: Path) -> None:
    name = "model.norm.weight"
    paths = [write_folder(tmp_path / "a", tensors(0))]
    paths.append(write_folder(tmp_path / "b", {**tensors(1), name: torch.ones(shape)}))
    text = refusal(paths)
    for word in (f"'{name}' is [8] in {paths[0]}", f"but {list(shape)} in {paths[1]}", words):
        assert word in text


@pytest.mark.parametrize("name", [EMBED, HEAD])
def test_other_vocabularies_are_named_as_such(name: str, tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / "a", tensors(0))]
    paths.append(write_folder(tmp_path / "b", {**tensors(1), name: torch.ones(13, 8)}))
    text = refusal(paths)
    assert f"'{name}' is [11, 8]" in text and "[13, 8]" in text and "vocabularies differ" in text


def test_the_base_must_fit_too(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / n, tensors(s)) for s, n in enumerate("ab")]
    wide = write_folder(tmp_path / "wide", {**tensors(5), "model.norm.weight": torch.ones(9)})
    ints = write_folder(tmp_path / "ints", {**tensors(5), "model.norm.weight": torch.ones(8).int()})
    assert f"[9] in {wide}" in refusal(paths, strategy=TaskArithmetic(), base=wide)
    assert "'model.norm.weight' is floating point in some models only" in refusal(
        paths, strategy=TaskArithmetic(), base=ints
    )


def test_empty_models_are_refused(tmp_path: Path) -> None:
    empty, full = write_folder(tmp_path / "empty", {}), write_folder(tmp_path / "full", tensors(0))
    assert "holds no tensors" in refusal([empty, empty])
    assert "empty: has no tensor" in refusal([full, empty])
    assert "empty: has no tensor" in refusal([empty, full])


def test_order_of_tensors_is_the_donor_s(tmp_path: Path) -> None:
    state = tensors(0)
    reverse = dict(reversed(state.items()))
    paths = [write_folder(tmp_path / "a", state, shards=3), write_folder(tmp_path / "b", reverse)]
    for order in (paths, paths[::-1]):
        prepared = plan_of(order)
        assert [t.name for t in prepared.plan.tasks] == list(prepared.donor.tensors)


# Configs


@pytest.mark.parametrize("extra", [[], ["MistralForCausalLM"]])
def test_architectures_must_agree_where_they_are_known(extra: list[str], tmp_path: Path) -> None:
    paths = [
        write_folder(tmp_path / "a", tensors(0)),
        write_folder(tmp_path / "bare", tensors(1), config=None),
    ]
    plan_of(paths)
    config = {**CONFIG, "architectures": extra}
    paths.append(write_folder(tmp_path / "c", tensors(2), config=config))
    if not extra:
        plan_of(paths)
        return
    text = refusal(paths)
    assert f"{paths[0]} is LlamaForCausalLM, {paths[2]} is MistralForCausalLM" in text
    assert "c is MistralForCausalLM" in refusal(paths[:1], base=paths[2])


@pytest.mark.parametrize("value", [{"quant_method": "gptq"}, {"bits": 4}, True, "int8"])
def test_quantised_models_are_refused(value: Any, tmp_path: Path) -> None:
    config = {**CONFIG, "quantization_config": value}
    quantised = write_folder(tmp_path / "q", tensors(0), config=config)
    plain = write_folder(tmp_path / "p", tensors(1))
    for models, base in [([quantised, plain], None), ([plain, quantised], None), ([plain], quantised)]:
        text = refusal(models, base=base)
        assert f"{quantised}: is quantised (" in text and "dequantise it first" in text


F8 = torch.float8_e4m3fn
SCALED: dict[str, tuple[str, torch.dtype, str]] = {
    "compressed-tensors, ModelOpt": ("w.weight", F8, "w.weight_scale"),
    "DeepSeek": ("model.layers.0.w.weight", F8, "model.layers.0.w.weight_scale_inv"),
    "DeepSeek's experts": ("experts.gate_up_proj", F8, "experts.gate_up_proj_scale_inv"),
    "the activations' alone": ("w.weight", torch.float8_e5m2, "w.input_scale"),
    "ComfyUI": ("w.weight", F8, "w.scale_weight"),
    "GPTQ": ("w.qweight", torch.int32, "w.scales"),
    "AWQ without scales": ("w.qweight", torch.int32, "w.qzeros"),
    "packed": ("w.weight_packed", torch.int32, "w.weight_scale"),
    "MXFP4": ("experts.down_proj_blocks", torch.uint8, "experts.down_proj_scales"),
    "bitsandbytes, 4 bits": ("w.weight", torch.uint8, "w.weight.absmax"),
    "bitsandbytes, 8 bits": ("w.weight", torch.int8, "w.SCB"),
}


@pytest.mark.parametrize("case", SCALED)
def test_values_with_a_scale_beside_them_are_refused(case: str, tmp_path: Path) -> None:
    weight, dtype, scale = SCALED[case]
    state = {weight: torch.ones(4, 4).to(dtype), scale: torch.full((1,), 0.5)}
    file = write_folder(tmp_path / "m", state, config=None) / "model.safetensors"
    message = refusal([file, file])
    assert f"is quantised: '{weight}'" in message and f"scaled by '{scale}'" in message
    assert "dequantise it first" in message


@pytest.mark.parametrize(
    ("weight", "dtype", "other"),
    [
        ("w.weight", F8, "w.bias"),
        ("w.weight", F8, "v.weight_scale"),
        ("w.weight", torch.bfloat16, "w.weight_scale"),
        ("embeddings.position_ids", torch.int64, "logit_scale"),
    ],
)
def test_other_scales_are_merged(weight: str, dtype: torch.dtype, other: str, tmp_path: Path) -> None:
    state = {weight: torch.ones(4, 4).to(dtype), other: torch.full((1,), 0.5)}
    folder = write_folder(tmp_path / "m", state, config=None)
    assert len(plan_of([folder, folder]).plan.tasks) == 2


@pytest.mark.parametrize("count", [1, 2])
def test_methods_say_how_many_models_they_take(count: int, tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / f"m{n}", tensors(n)) for n in range(count)]
    with pytest.raises(PlanError, match="task_arithmetic needs a base model: give one"):
        plan_of(paths, TaskArithmetic())


# Dtypes


@pytest.mark.parametrize("pair", list(itertools.combinations(FLOATS, 2)))
def test_mixed_dtypes_lose_nothing(pair: tuple[DType, DType]) -> None:
    """Every value of either dtype is one of the dtype that is written."""
    result = getattr(torch, widest(list(pair)).torch_name)
    assert widest(list(pair)) == widest(list(pair[::-1]))
    for dtype in pair:
        own = getattr(torch, dtype.torch_name)
        limits = torch.finfo(own)
        corners = torch.tensor([limits.max, limits.min, limits.tiny, 1 + limits.eps, 1 - limits.eps / 2])
        values = (
            corners.double().to(own) if dtype.size < 8 else torch.tensor([limits.max, limits.tiny]).double()
        )
        assert torch.equal(values.to(result).double(), values.double())


def test_mixed_dtypes_are_written_in_the_wider(tmp_path: Path) -> None:
    paths = [
        write_folder(tmp_path / str(d)[6:], tensors(n, d))
        for n, d in enumerate([torch.float16, torch.bfloat16])
    ]
    merged = merge_folders(paths, tmp_path / "out")
    halves = [tensors(0, torch.float16), tensors(1, torch.bfloat16)]
    for name, tensor in merged.items():
        exact = halves[0][name].double() * 0.5 + halves[1][name].double() * 0.5
        assert_same_bits(tensor, exact.float(), name)


@pytest.mark.parametrize("code", [code for code, dtype in BY_CODE.items() if not dtype.is_float])
def test_other_dtypes_are_copied_where_all_agree(code: str, tmp_path: Path) -> None:
    dtype = getattr(torch, BY_CODE[code].torch_name)
    state = {**tensors(0), "mask": torch.tensor([1, 0, 1]).to(dtype), "none": torch.empty(0, 2).to(dtype)}
    other = {**tensors(1), "mask": torch.tensor([1, 0, 1]).to(dtype), "none": torch.empty(0, 2).to(dtype)}
    paths = [write_folder(tmp_path / "a", state), write_folder(tmp_path / "b", other)]
    plan = plan_of(paths, dtype="bfloat16").plan
    copied = {t.name: (t.dtype.code, t.action) for t in plan.tasks if t.strategy is None}
    assert copied == {"mask": (code, "copy"), "none": (code, "copy")}
    merged = merge_folders(paths, tmp_path / "out", dtype="bfloat16")
    assert_same_bits(merged["mask"], state["mask"])
    other["mask"] = torch.tensor([1, 1, 1]).to(dtype)
    write_folder(tmp_path / "b", other)
    with pytest.raises(
        MergeError, match=rf"'mask' \({code}\) differs between .*a and .*b; .* make them equal"
    ):
        merge_folders(paths, tmp_path / "out2")
    with pytest.raises(MergeError, match=rf"'mask' \({code}\) differs between model 0 and model 1"):
        merge_states([state, other])


def test_whole_numbers_of_two_dtypes(tmp_path: Path) -> None:
    paths = [
        write_folder(tmp_path / str(dtype), {"n": torch.ones(2, dtype=dtype)})
        for dtype in (torch.int32, torch.int64)
    ]
    text = refusal(paths)
    assert "'n' is I32 and I64" in text and "save all models with one dtype" in text


# Tied weights


def tied(seed: int, config: Any = TIED, **options: Any) -> dict[str, Any]:
    return {"state": without(tensors(seed), HEAD), "config": config, **options}


def untied(seed: int, config: Any = CONFIG, **options: Any) -> dict[str, Any]:
    return {"state": tensors(seed), "config": config, **options}


def head_of(model: dict[str, Any]) -> Tensor:
    return model["state"].get(HEAD, model["state"][EMBED])


TYINGS: dict[str, tuple[list[dict[str, Any]], bool, bool]] = {
    # models, whether the output has a head of its own, whether its config says that it is tied
    "all tied": ([tied(0), tied(1)], False, True),
    "none tied": ([untied(0), untied(1)], True, False),
    "first tied": ([tied(0), untied(1)], True, False),
    "last tied": ([untied(0), tied(1)], True, False),
    "tied twice, one untied": ([tied(0), tied(1), untied(2)], True, False),
    "tied but stored, untied": ([untied(0, TIED), untied(1)], True, False),
    "tied but stored, all": ([untied(0, TIED), untied(1, TIED)], True, True),
    "tied but stored, tied": ([untied(0, TIED), tied(1)], True, True),
}


@pytest.mark.parametrize("case", TYINGS)
@pytest.mark.parametrize("with_base", [False, True])
def test_heads_are_merged_where_any_model_has_one(case: str, with_base: bool, tmp_path: Path) -> None:
    """The first model is the donor; with a base (task arithmetic), it is that base."""
    models, has_head, says_tied = TYINGS[case]
    paths = [write_folder(tmp_path / f"m{n}", **model) for n, model in enumerate(models)]
    heads = [head_of(model).double() for model in models]
    if with_base:
        merged = merge_folders(
            paths[1:], tmp_path / "out", TaskArithmetic(weight=0.5), base=paths[0], dtype="f64"
        )
        expected = heads[0] + sum(0.5 * (head - heads[0]) for head in heads[1:])
    else:
        merged = merge_folders(paths, tmp_path / "out", dtype="float64")
        expected = sum(heads, torch.zeros(())) / len(heads)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (HEAD in merged, config["tie_word_embeddings"]) == (has_head, says_tied)
    if has_head:
        torch.testing.assert_close(merged[HEAD], expected, rtol=1e-14, atol=1e-14)


def test_a_base_that_is_not_tied_keeps_its_head_in_the_output(tmp_path: Path) -> None:
    """Else its config would say that there is a head, and transformers would make up a random one."""
    paths = [write_folder(tmp_path / n, **tied(s)) for s, n in enumerate("ab")]
    base = write_folder(tmp_path / "base", **untied(2))
    merged = merge_folders(paths, tmp_path / "out", Linear(), base=base)
    torch.testing.assert_close(merged[HEAD], (tensors(0)[EMBED] + tensors(1)[EMBED]) / 2)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_reading_a_head_from_the_embedding_is_told(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / "a", **untied(0)), write_folder(tmp_path / "b", **tied(1))]
    plan = plan_of(paths).plan
    assert {t.name: t.note for t in plan.tasks if t.note} == {HEAD: f"read from {EMBED} where tied"}


def test_a_head_that_should_be_there_is_missed(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / "a", **untied(0)), write_folder(tmp_path / "b", **tied(1, CONFIG))]
    assert f"b: has no tensor '{HEAD}'" in refusal(paths)
    ambiguous = tied(2)
    ambiguous["state"]["other.embed_tokens.weight"] = torch.ones(11, 8)
    paths[1] = write_folder(tmp_path / "c", **ambiguous)
    assert "has no tensor" in refusal(paths)


def test_shared_tensors_are_found_by_the_header_s_note(tmp_path: Path) -> None:
    stored = {"encoder.weight": torch.ones(3)}
    alias = write_folder(tmp_path / "a", stored, metadata={"decoder.weight": "encoder.weight"})
    full = write_folder(tmp_path / "b", {**stored, "decoder.weight": torch.zeros(3)})
    for order in ([alias, full], [full, alias]):
        plan = plan_of(order).plan
        sources = {t.name: [ref.info.name for ref in t.parents] for t in plan.tasks}
        expected = ["encoder.weight", "decoder.weight"]
        assert sources["decoder.weight"] == (expected if order[0] is alias else expected[::-1])
    assert merge_folders([alias, full], tmp_path / "out")["decoder.weight"].tolist() == [0.5] * 3


# What is known before a run


def test_a_plan_touches_nothing_and_counts_right(tmp_path: Path) -> None:
    paths = [write_folder(tmp_path / n, tensors(s), shards=2) for s, n in enumerate("ab")]
    before = listing(tmp_path)
    prepared = plan_of(paths, dtype="bfloat16")
    count = sum(t.numel() for t in tensors(0).values())
    plan = prepared.plan
    assert (plan.parameters, plan.bytes_in, plan.bytes_out) == (count, 2 * 4 * count, 2 * count)
    four, one = prepared.memory(4), prepared.memory(1)
    assert four.worker == one.worker > 0
    assert four.total - one.total == 3 * one.worker
    assert listing(tmp_path) == before


def test_memory_is_that_of_blocks_not_of_the_model(tmp_path: Path) -> None:
    shapes = {"small": (4, 4), "large": (1200, 1000)}
    paths = [write_folder(tmp_path / n, tensors(s, shapes=shapes)) for s, n in enumerate("ab")]
    blocks = max(plan_of(paths).plan.tasks, key=lambda tensor: tensor.count).blocks()
    assert blocks[0][0] == 0 and blocks[-1][1] == 1_200_000
    assert all(stop == start for (_, stop), (start, _) in itertools.pairwise(blocks))
    assert plan_of(paths).memory(1).worker < 2 * 1_200_000 * 4


def test_a_derived_buffer_that_some_models_lack_is_dropped_and_told(tmp_path: Path) -> None:
    state = {"w.weight": torch.ones(2, 2), "embeddings.position_ids": torch.arange(4)}
    write_folder(tmp_path / "old", state)
    write_folder(tmp_path / "new", {"w.weight": torch.zeros(2, 2)})
    plan = plan_of([tmp_path / "old", tmp_path / "new"]).plan
    assert [tensor.name for tensor in plan.tasks] == ["w.weight"]
    assert [name for name, _, _ in plan.dropped] == ["embeddings.position_ids"]
