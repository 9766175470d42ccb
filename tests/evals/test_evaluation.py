"""From folders to a verdict: the API and the commands, on the demo's real models and on broken ones."""

from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from merge_models.evals import Activations, Merged, Running, TextSample, Weights, evaluate
from merge_models.evals.inputs.models import open_model
from merge_models.evals.schema import Evaluation
from merge_models.merge import merge, run_recipe
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.cli import main
from merge_models.merge.demo.skills import SKILLS
from merge_models.merge.errors import MergeError, counted
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies import Linear, Passthrough, TaskArithmetic
from tests.evals.merges import BASE, BOTH, EXPERTS, ONE, _recipe, run
from tests.helpers import CONFIG, tensors, write_folder
from tests.merge.tokenizer.test_alignment import _tokenizer

QUICK = (Weights(), Activations(information=False))


def quick(text: Path, tokens: int = 1536, length: int = 32) -> TextSample:
    """Little of a text."""
    return TextSample(text, tokens, length)


def edited(source: Path, out: Path, change: Any) -> Path:
    """A copy of a model folder with its tensors changed."""
    shutil.copytree(source, out)
    state = {k: change(k, v).contiguous() for k, v in load_file(source / "model.safetensors").items()}
    save_file(state, out / "model.safetensors", {"format": "pt"})
    return out


def test_mean_of_the_experts_is_healthy_and_finds_its_parents_itself(mean: Path, text: Path) -> None:
    found = evaluate(mean, measures=QUICK, text=quick(text))
    assert found.verdict is not None
    assert found.verdict.status == "healthy", found.verdict.summary
    assert [p.name for p in found.parents] == list(SKILLS)
    assert [p.weight for p in found.parents] == pytest.approx([1 / 3] * 3)
    assert any("foreign" in note for note in found.notes), "they were trained on answers alone"


def test_equal_parents_measure_as_equal(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "merged"
    merge([EXPERTS[0], EXPERTS[0]], Linear(), out=out)
    found = evaluate(out, measures=QUICK, text=quick(text))
    assert found.verdict is not None and found.verdict.score == pytest.approx(0, abs=1e-12)
    assert found.activations is not None and found.activations.head is not None
    for divergence in found.activations.head.divergences:
        assert divergence.kl.value == pytest.approx(0, abs=1e-12)
    for place in found.activations.sites:
        assert place.variance_ratio is not None
        assert place.variance_ratio.value == pytest.approx(1)


def test_added_up_too_strongly_is_collapsed_and_says_by_how_much(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "merged"
    merge(EXPERTS, TaskArithmetic(lambda_=4.0), base=BASE, out=out)
    found = evaluate(out, EXPERTS, BASE, measures=QUICK, text=quick(text))
    assert found.verdict is not None and found.verdict.status == "collapsed"
    divergence = next(f for f in found.verdict.findings if f.cause == "divergence from all")
    assert "multiply lambda" in divergence.remedy


def test_soup_with_a_permuted_copy_collapses_and_names_layers(tmp_path: Path, text: Path) -> None:
    """The copy is the same function: only the soup's hidden units do not belong together."""
    generator = torch.Generator().manual_seed(0)
    orders: dict[str, torch.Tensor] = {}

    def permute(name: str, value: torch.Tensor) -> torch.Tensor:
        layer, _, rest = name.partition(".mlp.")
        if not rest:
            return value
        axis = 1 if rest.startswith("down_proj") else 0
        order = orders.setdefault(layer, torch.randperm(value.shape[axis], generator=generator))
        return value.index_select(axis, order)

    copy = edited(EXPERTS[1], tmp_path / "copy", permute)
    out = tmp_path / "merged"
    merge([EXPERTS[1], copy], Linear(), out=out)
    found = evaluate(out, measures=QUICK, text=quick(text))
    assert found.verdict is not None and found.verdict.status != "healthy"
    variance = next(f for f in found.verdict.findings if f.cause == "variance collapse")
    assert variance.layers and "layer" in variance.where
    assert found.activations is not None and found.activations.head is not None
    parents = found.activations.head.loss
    assert parents[found.parents[0].name].value == pytest.approx(
        parents[found.parents[1].name].value, rel=1e-3
    )


@pytest.fixture(scope="module")
def speakers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], Path]:
    """Two models, trained here: one went on with words of the alphabet's first half, one with the second's.

    Returns:
        Their folders, and calibration text of both domains.
    """
    place = tmp_path_factory.mktemp("speakers")
    rng = random.Random(0)
    letters = "abcdefghijklmnoprst"
    domains = {"low": letters[:9], "high": letters[9:18]}

    def text(domain: str, n: int) -> str:
        """Runs along the alphabet from random starts: the next letter is known, but for the starts."""
        runs = []
        for _ in range(n // 6):
            start = rng.randrange(9)
            runs.append("".join(domains[domain][(start + i) % 9] for i in range(6)))
        return "".join(runs)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE).float()
    folders = []
    torch.set_num_threads(1)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    for domain in domains:
        model.load_state_dict(base)
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        mixed = [domain, domain, "low", "high"]
        for _ in range(40):
            rows = [tokenizer(text(mixed[i % 4], 32) + "." * 32)["input_ids"][:30] for i in range(16)]
            ids = torch.tensor(rows)
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        shutil.copytree(BASE, place / domain)
        model.save_pretrained(place / domain)
        folders.append(place / domain)
    file = place / "text.jsonl"
    rows = [json.dumps({"domain": d, "text": text(d, 240)}) for d in domains for _ in range(6)]
    file.write_text("\n".join(rows))
    return folders, file


@pytest.mark.parametrize(
    ("noise", "status"), [(0.0, ("healthy",)), (0.02, ("healthy",)), (3.0, ("collapsed",))]
)
def test_predictions_decide(
    noise: float, status: tuple[str, ...], speakers: tuple[list[Path], Path], tmp_path: Path
) -> None:
    """The score is the share of the parent's knowledge that is lost."""
    folders, file = speakers
    generator = torch.Generator().manual_seed(0)

    def disturb(name: str, value: torch.Tensor) -> torch.Tensor:
        del name
        return value + noise * value.std() * torch.randn(value.shape, generator=generator)

    out = edited(folders[0], tmp_path / "merged", disturb)
    found = evaluate(out, [folders[0]], measures=[Activations(information=False)], text=quick(file, 1024, 30))
    assert found.verdict is not None
    assert found.verdict.status in status, found.verdict.summary
    assert set(found.verdict.by_skill) == {"low", "high"}
    assert found.activations is not None and found.activations.head is not None
    head = found.activations.head
    lost = [
        head.divergences[0].kl_by_domain[d]
        / (found.activations.calibration.unigram_entropy[d] - head.loss_by_domain["low"][d])
        for d in ("low", "high")
    ]
    assert found.verdict.score == pytest.approx(sum(lost) / 2)


def test_nan_is_a_verdict_not_a_crash(tmp_path: Path, text: Path) -> None:
    def poison(name: str, value: torch.Tensor) -> torch.Tensor:
        return value * float("nan") if "layers.1.mlp.up" in name else value

    out = edited(EXPERTS[0], tmp_path / "merged", poison)
    found = evaluate(out, EXPERTS[:2], measures=QUICK, text=quick(text))
    assert found.verdict is not None and found.verdict.status == "collapsed"
    assert "not finite" in {f.cause for f in found.verdict.findings}
    Evaluation.from_json(found.to_json())


def test_stacked_layers_that_do_nothing_are_not_healthy(
    tmp_path: Path, text: Path, speakers: tuple[list[Path], Path]
) -> None:
    """Another depth: no layer is comparable, so text that the parent knows decides; without it, nothing."""
    (parent, _), known = speakers
    out, activations = tmp_path / "merged", Activations(information=False)
    for layers, status in (((2, 0, 1, 0), "collapsed"), ((0, 1, 2), "healthy")):
        slices = [{"sources": [{"model": str(parent), "layer_range": [n, n + 1]}]} for n in layers]
        run_recipe(parse_recipe({"merge_method": "passthrough", "slices": slices}), out, overwrite=True)
        found = evaluate(out, measures=activations, text=quick(known, 1024, 30))
        assert found.verdict is not None
        assert found.verdict.status == status, found.verdict.summary
        if len(layers) > 3:
            found = evaluate(out, measures=activations, text=quick(text, 1024, 30))
            assert found.verdict is not None and found.verdict.status == "not judged"
            assert any("no better than guessing" in note for note in found.notes)


def stack(folder: Path, *runs: tuple[str, int, int, float]) -> Path:
    """Layers of models of that folder, one model's behind another's, each scaled."""
    slices = [
        {
            "sources": [
                {"model": str(folder / n), "layer_range": [start, stop], "parameters": {"scale": scale}}
            ]
        }
        for n, start, stop, scale in runs
    ]
    out = folder / "merged"
    run_recipe(parse_recipe({"merge_method": "passthrough", "slices": slices}), out, overwrite=True)
    return out


@pytest.fixture
def four_layers(tmp_path: Path) -> Path:
    """A folder with models a, b and c of four layers each."""
    shapes = {f"model.layers.{n}.mlp.up_proj.weight": (24, 16) for n in range(4)} | {
        "lm_head.weight": (9, 16)
    }
    for seed, name in enumerate("abc"):
        write_folder(tmp_path / name, tensors(seed, shapes=shapes), config={**CONFIG, "num_hidden_layers": 4})
    return tmp_path


STACKS = {
    "deeper": (("a", 0, 3, 1.0), ("b", 1, 4, 1.0)),
    "shallower": (("b", 2, 3, 1.0), ("a", 0, 1, 1.0)),
    "of three models": (("a", 0, 4, 1.0), ("b", 0, 4, 1.0), ("c", 0, 4, 1.0), ("b", 3, 4, 1.0)),
    "as deep": (("a", 3, 4, 1.0), ("a", 0, 1, 1.0), ("b", 1, 2, 1.0), ("b", 1, 2, 1.0)),
    "smaller layers": (("a", 0, 3, 1.0), ("b", 1, 4, 0.25)),
}


@pytest.mark.parametrize("case", STACKS)
def test_layers_are_compared_with_those_that_they_came_from(case: str, four_layers: Path) -> None:
    """Not with those of the same number; and where nobody knows, with none."""
    runs = STACKS[case]
    out = stack(four_layers, *runs)
    scales = [scale for _, start, stop, scale in runs for _ in range(start, stop)]
    found = evaluate(out, measures=Weights())
    assert found.weights is not None and found.verdict is not None
    layers = [t for t in found.weights.tensors if t.layer is not None]
    assert [t.norm_ratio for t in layers] == pytest.approx(scales)
    assert all((t.unexplained or 0) < 1e-24 for t in layers) and not found.weights.problems
    assert found.verdict.status == ("degraded" if min(scales) < 1 else "healthy")
    (out / MANIFEST).unlink()
    parents = [four_layers / name for name in dict.fromkeys(name for name, *_ in runs)]
    if len(scales) != 4:
        found = evaluate(out, parents, measures=Weights())
        assert found.weights is not None and found.verdict is not None
        assert all(t.norm_ratio is None for t in found.weights.tensors if t.layer is not None)
        if min(scales) == 1:  # else the head tells
            assert found.verdict.status == "not judged" and "activations" in found.verdict.summary
        told = f"the merge has {counted(len(scales), 'layer')} in 'model.layers.' and {parents[0]} 4:"
        assert found.weights.problems[0].startswith(told) and len(found.weights.problems) == len(parents)


def test_slices_of_several_models_are_compared_layer_by_layer(four_layers: Path) -> None:
    runs = [[("a", 0), ("b", 2)], [("a", 1), ("b", 0)], [("a", 0), ("b", 1)]]
    slices = [
        {"sources": [{"model": str(four_layers / n), "layer_range": [i, i + 2]} for n, i in run]}
        for run in runs
    ]
    recipe = {"merge_method": "linear", "slices": slices, "parameters": {"weight": 1}}
    run_recipe(parse_recipe(recipe), four_layers / "merged")
    found = evaluate(four_layers / "merged", measures=Weights()).weights
    assert found is not None and found.parent_share == pytest.approx((0.5, 0.5))
    assert all(t.parent_share == pytest.approx((0.5, 0.5)) for t in found.tensors)
    assert found.unexplained is not None and found.unexplained < 1e-12


def test_a_stack_that_is_judged_before_it_is_published_knows_its_layers(tmp_path: Path, text: Path) -> None:
    runs = [{"model": str(EXPERTS[i]), "layer_range": [i, i + 1]} for i in (1, 0)] * 2
    recipe = {"merge_method": "passthrough", "slices": [{"sources": [run]} for run in runs]}
    (tmp_path / "recipe.yml").write_text(json.dumps(recipe))
    out, report = tmp_path / "out", tmp_path / "report.json"
    words = ["run", tmp_path / "recipe.yml", "-o", out, "--eval", "--data", text, "--report", report, "-q"]
    assert CliRunner().invoke(main, list(map(str, words))).exit_code == 0
    found = Evaluation.from_json(report.read_text()).weights
    assert found is not None and not found.problems
    assert {round(t.norm_ratio or 0, 12) for t in found.tensors} == {1.0}


def test_weights_only_needs_no_model_that_runs(mean: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    shutil.copytree(mean, out)
    (out / "config.json").write_text("{}")
    found = evaluate(out, EXPERTS, BASE, measures=Weights())
    assert found.verdict is not None and found.verdict.basis == "weights"


def test_a_slerp_at_its_first_model_is_measured_against_both(tmp_path: Path, text: Path) -> None:
    """With and without base_model it is the same merge, so the same verdict."""
    found = []
    for number, base in enumerate((None, ONE)):
        run_recipe(_recipe("slerp", base, BOTH, {"t": 0.01}), tmp_path / str(number))
        found.append(evaluate(Merged(tmp_path / str(number), "merge"), measures=QUICK, text=quick(text)))
    alone, based = (e.model_copy(update={"created": "", "weights": None, "activations": None}) for e in found)
    assert alone == based
    assert alone.verdict is not None and alone.verdict.score is not None and alone.verdict.score < 0.1
    assert all("lambda" not in f.remedy for f in alone.verdict.findings)


def test_reviewed_merges_can_be_reproduced(tmp_path: Path, text: Path) -> None:
    out, report = tmp_path / "merged", tmp_path / "report.json"
    words = ["merge", *EXPERTS[:2], "-o", out, "--eval", "--data", text, "--report", report]
    code, printed = run(*words)
    assert code == 0, printed
    assert "# Evaluation" in (out / "README.md").read_text() and f"report: {report}" in printed
    assert run("verify", out)[0] == 0
    assert run("reproduce", out)[0] == 0


def write_adapter(out: Path) -> Path:
    """A LoRA adapter of rank 2 on the demo's base, as PEFT writes it."""
    generator = torch.Generator().manual_seed(0)
    weight = load_file(BASE / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    factors = {
        "lora_A": torch.randn(2, weight.shape[1], generator=generator) / 20,
        "lora_B": torch.randn(weight.shape[0], 2, generator=generator) / 20,
    }
    out.mkdir()
    name = "base_model.model.model.layers.0.mlp.up_proj"
    save_file({f"{name}.{k}.weight": v for k, v in factors.items()}, out / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"]}
    (out / "adapter_config.json").write_text(json.dumps(config))
    return out


def write_pickled(source: Path, out: Path) -> Path:
    shutil.copytree(source, out, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(load_file(source / "model.safetensors"), out / "pytorch_model.bin")
    return out


def assert_measured_alike(one: Evaluation, other: Evaluation) -> None:
    assert one.activations is not None and other.activations is not None
    assert one.activations.sites == other.activations.sites
    assert one.weights is not None and other.weights is not None
    norms = [{t.name: t.norm_ratio for t in found.tensors} for found in (one.weights, other.weights)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-9)  # blocks of 32 and of 16 bits are cut otherwise


def test_parents_with_adapters_and_pickled_parents_count_as_what_they_are(tmp_path: Path, text: Path) -> None:
    reference = f"{BASE}+{write_adapter(tmp_path / 'adapter')}"
    pickled = write_pickled(EXPERTS[0], tmp_path / "pickled")
    merge([reference], Passthrough(), out=tmp_path / "sum", dtype="float32")  # sums are not rounded
    out = tmp_path / "merged"
    call = ["merge", reference, str(pickled), "-o", str(out), "--allow-pickle", "--data", str(text)]
    call += ["--dtype", "float32"]
    done = CliRunner().invoke(main, [*call, "--eval", "--report", str(tmp_path / "report.json")])
    assert done.exit_code == 0, done.output
    merge([tmp_path / "sum", EXPERTS[0]], Linear(), out=tmp_path / "plain", dtype="float32")
    plain = evaluate(tmp_path / "plain", measures=QUICK, text=quick(text))
    of_manifest = evaluate(out, measures=QUICK, text=quick(text), running=Running(allow_pickle=True))
    assert_measured_alike(of_manifest, plain)
    assert [p.name for p in of_manifest.parents] == ["base+adapter", "pickled"]
    with pytest.raises(MergeError, match="pickled.*--allow-pickle"):
        evaluate(out, measures=QUICK, text=quick(text))
    assert not list(tmp_path.glob("merge-models-*"))


def test_inspect_and_repair_take_the_same_references(tmp_path: Path, text: Path) -> None:
    reference = f"{BASE}+{write_adapter(tmp_path / 'adapter')}"
    pickled = write_pickled(EXPERTS[0], tmp_path / "pickled")
    out = tmp_path / "merged"
    merge([reference, pickled], Linear(), out=out, allow_pickle=True)
    for call in (
        ["inspect", reference, str(pickled), "--base", str(BASE)],
        ["repair", str(out), "-o", str(tmp_path / "repaired"), "--data", str(text), "--tokens", "1536"],
    ):
        refused = CliRunner().invoke(main, call)
        assert refused.exit_code == 2 and "--allow-pickle" in refused.stderr, refused.output
        done = CliRunner().invoke(main, [*call, "--allow-pickle"])
        assert done.exit_code == 0, done.output


def test_a_full_disk_is_told_before_weights_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(MergeError, match=r"needs .* KB of disk to be loaded, 1 B is free in .*; set TMPDIR"):
        with open_model(write_pickled(BASE, tmp_path / "pickled"), allow_pickle=True):
            pass


def test_a_merge_of_two_vocabularies_is_judged(tmp_path: Path) -> None:
    """It has more rows than its parents: predictions are compared over the tokens that all have."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    for seed, (name, added) in enumerate({"A": ["<|turn|>"], "B": ["<|end|>", "<|rare|>"]}.items()):
        tokenizer = _tokenizer(added)
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=24, vocab_size=len(tokenizer)))
        model.save_pretrained(str(tmp_path / name))
        tokenizer.save_pretrained(str(tmp_path / name))
    models = [str(tmp_path / name) for name in "AB"]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    run_recipe(parse_recipe(recipe), tmp_path / "out")
    found = evaluate(tmp_path / "out", measures=Activations(information=False), text=TextSample(tokens=1024))
    assert found.activations is not None and found.activations.head is not None
    assert found.activations.head.predictions > 500
