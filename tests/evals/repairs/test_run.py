"""Repair: scales come back to the parents' mean, losses fall where they were harmed, healthy merges stay."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from merge_models.evals import TextSample
from merge_models.evals.inputs.lineage import lineage
from merge_models.evals.repairs import repair, repair_module
from merge_models.evals.repairs.rescale import linear_modules, measure
from merge_models.merge import merge, run_recipe
from merge_models.merge.api.reproduce import reproduce
from merge_models.merge.demo import SKILLS, demo_folder, held_out
from merge_models.merge.errors import MergeError
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies import Karcher, Linear
from tests.helpers import listing, read_folder

EXPERTS = [str(demo_folder(name)) for name in ("sorting", "reversing", "adding")]


def soup_of(*models: nn.Module) -> Any:
    merged = copy.deepcopy(models[0])
    states = [m.state_dict() for m in models]
    merged.load_state_dict({k: torch.stack([s[k] for s in states]).mean(0) for k in states[0]})
    return merged


def net(seed: int, bias: bool = True) -> Any:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 60, bias), nn.ReLU(), nn.Linear(60, 60, bias), nn.ReLU(), nn.Linear(60, 4, bias)
    )


def moments(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    found = measure(model, linear_modules(model), lambda m: m(x), False)
    return {name: (m.mean, m.deviation) for name, m in found.items()}


@pytest.mark.parametrize("bias", [True, False])
def test_every_unit_has_the_parents_mean_scale_afterwards(bias: bool) -> None:
    """Also in later layers: each was measured behind the mended earlier ones."""
    one, two, x = net(0, bias), net(1, bias), torch.randn(400, 12)
    soup = soup_of(one, two)
    records = repair_module(soup, [one, two], [x[:150], x[150:]])
    after, first, second = (moments(m, x) for m in (soup, one, two))
    assert [r.module for r in records] == ["0", "2", "4"]
    for record in records:
        goal = [(first[record.module][n] + second[record.module][n]) / 2 for n in (0, 1)]
        mean, deviation = after[record.module]
        moving = goal[1] > 1e-3 * goal[1].median()
        torch.testing.assert_close(deviation[moving], goal[1][moving], rtol=1e-4, atol=1e-6)
        if bias:
            torch.testing.assert_close(mean[moving], goal[0][moving], rtol=1e-3, atol=1e-4)
        assert record.variance_ratio_before is not None and record.variance_ratio_before < 0.7
        assert record.variance_ratio_after == pytest.approx(1)


def test_a_merge_of_equals_does_not_change() -> None:
    one, x = net(0), torch.randn(100, 12)
    soup = copy.deepcopy(one)
    repair_module(soup, [one, one], [x])
    for name, value in one.state_dict().items():
        torch.testing.assert_close(soup.state_dict()[name], value, rtol=1e-6, atol=1e-7)


def test_dead_units_and_wild_factors_are_guarded() -> None:
    one, x = net(0), torch.randn(200, 12)
    soup = copy.deepcopy(one)
    with torch.no_grad():
        soup[0].weight[3] *= 1e-9
        soup[0].weight[5] *= 0.01
        one[0].weight[7] = 0
    before = soup[0].weight.detach().clone()
    repair_module(soup, [one], [x])
    factors = soup[0].weight.detach().norm(dim=1) / before.norm(dim=1)
    assert factors[3] == pytest.approx(1) and factors[7] == pytest.approx(1)
    assert factors[5] == pytest.approx(4, rel=1e-4)


def test_tied_and_shared_weights_are_left() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 6), nn.Linear(6, 9, False)
            self.head.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.inner(self.embed(ids)))

    assert set(linear_modules(Tied())) == {"inner"}


def test_hooks_and_modes_are_as_before() -> None:
    one, two = net(0).train(), net(1)
    repair_module(one, [two], [torch.randn(30, 12)])
    assert one.training and not any(m._forward_hooks for m in [*one.modules(), *two.modules()])
    with pytest.raises(MergeError, match="at least one parent"):
        repair_module(one, [], [torch.randn(3, 12)])
    with pytest.raises(MergeError, match="no linear module in common"):
        repair_module(nn.Sequential(nn.ReLU()), [two], [torch.randn(30, 12)])


def test_the_soup_of_a_permuted_copy_is_nearer_to_its_parents_again() -> None:
    """Units that do not match are averaged to less than they were: 12 classes of clusters, a trained net."""
    torch.manual_seed(0)
    centres = 1.5 * torch.randn(12, 12)
    labels = torch.arange(1200) % 12
    x = centres[labels] + torch.randn(1200, 12)
    model: Any = nn.Sequential(
        nn.Linear(12, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 12)
    )
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    copy_ = copy.deepcopy(model)
    p, q = torch.randperm(128), torch.randperm(128)
    with torch.no_grad():
        copy_[0].weight.copy_(model[0].weight[p])
        copy_[0].bias.copy_(model[0].bias[p])
        copy_[2].weight.copy_(model[2].weight[q][:, p])
        copy_[2].bias.copy_(model[2].bias[q])
        copy_[4].weight.copy_(model[4].weight[:, q])
    soup = soup_of(model, copy_)
    fresh = centres[labels] + torch.randn(1200, 12)

    def right(net: nn.Module) -> float:
        return float((net(fresh).argmax(-1) == labels).double().mean())

    before = right(soup)
    repair_module(soup, [model, copy_], [x])
    assert right(model) > 0.85
    assert 1 - right(soup) < 0.6 * (1 - before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    rows = []
    for name, skill in SKILLS.items():
        prompts = held_out(name, 240)
        lines = "".join(prompt + skill.answer(prompt) for prompt in prompts)
        rows += [{"domain": name, "text": lines[start : start + 600]} for start in range(0, len(lines), 600)]
    file = tmp_path / "text.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_folder_is_repaired(tmp_path: Path, text: Path) -> None:
    merged, out = tmp_path / "merged", tmp_path / "out"
    merge(EXPERTS, Linear(), base=str(demo_folder("base")), out=merged)
    before = listing(merged)
    report = repair(merged, out=out, text=TextSample(text, 2048, 32))
    assert listing(merged) == before
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_after <= report.loss_before + 0.02
    assert json.loads((out / "repair.json").read_text()) == report.model_dump(mode="json")
    old, new = read_folder(merged), read_folder(out)
    assert list(old) and set(old) == set(new)
    assert all(old[k].shape == new[k].shape and old[k].dtype == new[k].dtype for k in old)
    assert torch.equal(old["model.norm.weight"], new["model.norm.weight"])
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(out)
    AutoTokenizer.from_pretrained(out)
    for layer in report.layers:
        for name in layer.folded_into:
            assert torch.equal(model.state_dict()[name], new[name])
    with pytest.raises(MergeError, match="exists"):
        repair(merged, out=out, text=TextSample(text, 2048, 32))
    with pytest.raises(MergeError, match="overlap"):
        repair(merged, out=merged, text=TextSample(text), overwrite=True)
    again = repair(merged, out=out, text=TextSample(text, 2048, 32), overwrite=True)
    assert again == report


def test_a_shrunken_merge_is_mended(tmp_path: Path) -> None:
    """An expert whose layers write half of what they should: the repair finds the factor."""
    from safetensors.torch import save_file

    shrunk = tmp_path / "shrunk"
    merge([EXPERTS[0]], Linear(), out=shrunk)
    state = read_folder(shrunk)
    for name in state:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            state[name] = state[name] * 0.5
    save_file(state, shrunk / "model.safetensors", {"format": "pt"})
    skill, text = SKILLS["sorting"], tmp_path / "text.jsonl"
    examples = [prompt + skill.answer(prompt) for prompt in held_out("sorting", 120)]
    text.write_text("\n".join(json.dumps({"text": example}) for example in examples))
    length = len(examples[0])
    report = repair(shrunk, [EXPERTS[0]], out=tmp_path / "out", text=TextSample(text, 100 * length, length))
    assert report.loss_before is not None and report.loss_after is not None
    assert report.loss_after < report.loss_before - 0.05
    fixed, parent = read_folder(tmp_path / "out"), read_folder(Path(EXPERTS[0]))
    name = "model.layers.0.self_attn.o_proj.weight"
    torch.testing.assert_close(fixed[name].float(), parent[name].float(), rtol=0.03, atol=1e-3)


def test_a_repaired_stack_knows_where_its_layers_are_from(tmp_path: Path) -> None:
    slices = [{"sources": [{"model": EXPERTS[i], "layer_range": [i, i + 1]}]} for i in (0, 1, 0)]
    recipe = parse_recipe({"merge_method": "passthrough", "slices": slices})
    run_recipe(recipe, tmp_path / "merged")
    repair(tmp_path / "merged", out=tmp_path / "out", text=TextSample(tokens=512, length=32))
    of_merge, of_repair = (lineage(tmp_path / name, (), None, None) for name in ("merged", "out"))
    assert of_merge.origins is not None and of_merge.origins == of_repair.origins
    assert verify(tmp_path / "out").problems == ()


def test_a_repaired_folder_knows_where_it_is_from(tmp_path: Path) -> None:
    merged, out = tmp_path / "merged", tmp_path / "repaired"
    merge(EXPERTS, Karcher(weight=(0.5, 0.3, 0.2), origin="base"), base=demo_folder("base"), out=merged)
    report = repair(merged, out=out, text=TextSample(tokens=1024, length=32))
    assert verify(out).problems == () and verify(out, inputs=True).problems == ()
    of_merge, of_repair = (lineage(folder, (), None, None) for folder in (merged, out))
    assert replace(of_merge, merged="") == replace(of_repair, merged="")
    assert of_repair.base == str(demo_folder("base"))
    record = json.loads((out / "merge_manifest.json").read_text())
    assert record["repair"]["loss_after"] == report.loss_after
    assert [given["role"] for given in record["inputs"]] == ["merge", "parent", "parent", "parent", "base"]
    card = (out / "README.md").read_text()
    assert "`merged`" in card and "`sorting`" in card and str(tmp_path) not in card
    yaml.safe_load(card.split("---\n")[1])
    with pytest.raises(MergeError, match="is a repaired merge, .*; repair it again"):
        reproduce(out)
    with open(out / "model.safetensors", "r+b") as file:
        file.seek(-3, 2)
        byte = file.read(1)
        file.seek(-3, 2)
        file.write(bytes([byte[0] ^ 1]))
    assert any("has changed" in line for line in verify(out).problems)
