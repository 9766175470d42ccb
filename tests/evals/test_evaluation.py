"""From folders to a verdict: the API and the commands, on the demo's real models and on broken ones."""

from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from merge_models.evals import Activations, Merged, Running, TextSample, Weights, evaluate
from merge_models.evals.inputs.lineage import lineage, short_name
from merge_models.evals.inputs.models import open_model
from merge_models.evals.inputs.positions import most_positions
from merge_models.evals.report.outlets import check_outlets, write_outlets
from merge_models.evals.schema import Evaluation, Outcome, Verdict
from merge_models.merge import merge, run_recipe
from merge_models.merge.checkpoint.outputs.staging import MANIFEST
from merge_models.merge.cli import main
from merge_models.merge.cli.verdicts import exit_by_verdict
from merge_models.merge.demo.skills import SKILLS, demo_folder
from merge_models.merge.errors import MergeError, counted
from merge_models.merge.recipes.recipe import Recipe, parse_recipe
from merge_models.merge.strategies import Linear, Passthrough, TaskArithmetic
from tests.helpers import CONFIG, tensors, write_folder
from tests.merge.tokenizer.test_alignment import _tokenizer

EXPERTS = [demo_folder(name) for name in SKILLS]
BASE = demo_folder("base")
QUICK = (Weights(), Activations(information=False))


def quick(text: Path, tokens: int = 1536, length: int = 32) -> TextSample:
    """Little of a text."""
    return TextSample(text, tokens, length)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Solved prompts of the three skills, none of which training has seen."""
    file = tmp_path_factory.mktemp("text") / "skills.jsonl"
    rows = []
    for name, skill in SKILLS.items():
        prompts = skill.prompts("calibration", held_out=True)
        for _ in range(60):
            prompt = next(prompts)
            rows.append(json.dumps({"domain": name, "text": prompt + skill.answer(prompt)}))
    file.write_text("\n".join(rows))
    return file


def edited(source: Path, out: Path, change: Any) -> Path:
    """A copy of a model folder with its tensors changed."""
    shutil.copytree(source, out)
    state = {k: change(k, v).contiguous() for k, v in load_file(source / "model.safetensors").items()}
    save_file(state, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.fixture(scope="module")
def mean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mean") / "merged"
    merge(EXPERTS, Linear(), out=out)
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


@pytest.mark.parametrize(
    ("status", "fail_on", "fails"),
    [
        ("healthy", "degraded", False),
        ("degraded", "degraded", True),
        ("degraded", "collapsed", False),
        ("collapsed", "collapsed", True),
        ("not judged", "degraded", True),
        ("not judged", "collapsed", True),
        ("not judged", None, False),
    ],
)
def test_exit_code_of_the_verdict(status: Outcome, fail_on: str | None, fails: bool) -> None:
    verdict = Verdict(status=status, basis="weights", summary=status)
    with pytest.raises(SystemExit) if fails else nullcontext() as stopped:
        exit_by_verdict([verdict], fail_on)
    assert not fails or (stopped is not None and stopped.value.code == 3)


@pytest.mark.parametrize(
    ("config", "most"),
    [
        ({}, None),
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64, "n_ctx": 128}, 64),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 32}}, 32),
        ({"model_type": "roberta", "max_position_embeddings": 66, "pad_token_id": 1}, 64),
        ({"model_type": "bert", "max_position_embeddings": 66, "pad_token_id": 1}, 66),
        ({"max_position_embeddings": -1, "n_positions": True, "n_ctx": "64"}, None),
    ],
)
def test_positions_are_told_by_configs(config: dict[str, Any], most: int | None) -> None:
    assert most_positions(config) == most


def test_sequences_are_as_short_as_the_models_take(tmp_path: Path, text: Path) -> None:
    """Where only config.json says it: the tokenizer has no limit, and nothing fails after the merge."""
    parents = [tmp_path / place.name for place in EXPERTS[:2]]
    for source, place in zip(EXPERTS, parents, strict=False):
        shutil.copytree(source, place)
        settings = json.loads((place / "tokenizer_config.json").read_text())
        settings.pop("model_max_length", None)
        (place / "tokenizer_config.json").write_text(json.dumps(settings))
    out, report = tmp_path / "out", tmp_path / "report.json"
    code, printed = run("merge", *map(str, parents), "-o", str(out), "--eval", "--data", str(text),
                        "--report", str(report))  # fmt: skip
    assert code == 0, printed
    found = Evaluation.from_json(report.read_text())
    assert any("calibration sequences have 64 tokens, not 256" in note for note in found.notes)
    assert found.activations is not None
    kept = found.activations.calibration
    assert kept.tokens == kept.sequences * 63
    repaired = tmp_path / "repaired"
    code, printed = run("repair", str(out), "-o", str(repaired), "--data", str(text), "--tokens", "2048")
    assert code == 0 and "calibration sequences have 64 tokens" in printed, printed


def test_weights_only_needs_no_model_that_runs(mean: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    shutil.copytree(mean, out)
    (out / "config.json").write_text("{}")
    found = evaluate(out, EXPERTS, BASE, measures=Weights())
    assert found.verdict is not None and found.verdict.basis == "weights"


# Commands


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    return result.exit_code, result.output


def test_eval_command_reports_and_fails_on_collapse(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "merged"
    merge(EXPERTS, TaskArithmetic(lambda_=4.0), base=BASE, out=out)
    reports = [tmp_path / f"report.{suffix}" for suffix in ("json", "md", "html")]
    outlets = [word for report in reports for word in ("--report", report)]
    code, printed = run("eval", out, "--data", text, "--tokens", 1024, *outlets, "--fail-on", "collapsed")
    assert code == 3, printed
    assert "collapsed" in printed and "try:" in printed
    assert Evaluation.from_json(reports[0].read_text()).verdict
    assert "collapsed" in reports[1].read_text() and "</html>" in reports[2].read_text()


def test_eval_of_several_ranks_them(mean: Path, tmp_path: Path, text: Path) -> None:
    other = tmp_path / "added"
    merge(EXPERTS, TaskArithmetic(lambda_=4.0), base=BASE, out=other)
    report = tmp_path / "report.md"
    code, printed = run("eval", other, mean, "--data", text, "--tokens", 1024, "--report", report, "-q")
    assert (code, printed) == (0, "")
    table = report.read_text()
    assert table.index("merged") < table.index("added")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "{mean}", "--report", "{tmp}/no/such/report.html"], "there is no folder"),
        (["eval", "{mean}", "--report", "{tmp}/report.pdf"], "must end in .json, .md, .html"),
        (["eval", "{mean}", "-p", "{base}", "-p", "{tmp}"], "is not a parent of"),
        (["eval", "{tmp}", "-p", "{base}"], "{tmp}"),
        (["eval", "{base}"], "pass --parents"),
        (["eval", "{mean}", "--weights", "1,2"], "2 weights for 3 parents"),
        (["eval", "{mean}", "--weights", "1,-2,3"], "none negative"),
        (["eval", "{mean}", "--weights", "a,b,c"], "not a list of numbers"),
        (["eval", "{mean}", "--data", "{tmp}/none.jsonl"], "none.jsonl"),
        (["eval", "{mean}", "--data", "{tmp}/short.txt"], "too little text"),
        (["eval", "{tmp}/none"], "{tmp}/none"),
        (["eval", "{mean}", "--seed", "-1"], "'--seed'"),
        (["repair", "{mean}", "-o", "{tmp}/r", "--seed", "-1"], "'--seed'"),
        (["eval", "{mean}", "--weights-only", "--tasks", "{tmp}/no.jsonl"], "--tasks needs models that run"),
        (["eval", "{mean}", "--weights-only", "--data", "{tmp}/no.txt"], "--data needs models that run"),
        (["eval", "{mean}", "--device", "gpuu"], "device 'gpuu'"),
        (["merge", "{base}", "-o", "{tmp}/out", "--eval", "--data", "{tmp}/none.jsonl"], "none.jsonl"),
        (["merge", "{base}", "-o", "{tmp}/out", "--eval", "--data", "{tmp}/short.txt"], "too little text"),
        (["merge", "{base}", "-o", "{tmp}/out", "--weights", "1", "--set", "weight=2"], "leave one out"),
        (["merge", "{base}", "-o", "{tmp}/out", "--report", "{tmp}/r.md"], "needs --eval"),
        (["eval", "{broken}", "-p", "{base}", "--data", "{text}"], "{broken}"),
        (["eval", "{other}", "-p", "{base}", "--data", "{text}"], "tokenizer"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, mean: Path, text: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("too short")
    broken = tmp_path / "broken"
    shutil.copytree(EXPERTS[0], broken)
    (broken / "config.json").write_text('{"model_type": "no such thing"}')
    other = tmp_path / "other"
    shutil.copytree(EXPERTS[0], other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = {"mean": mean, "tmp": tmp_path, "base": BASE, "text": text, "broken": broken, "other": other}
    code, printed = run(*(a.format(**names) for a in arguments))
    assert code == 2 and "are finished and kept" not in printed, printed
    lines = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and message.format(**names) in lines[0]
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


# Lineage and outlets


def test_lineage_reads_the_recipes_weights(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(EXPERTS[:2], Linear(weight=(3.0, 1.0)), out=out)
    found = lineage(out, (), None, None)
    assert [Path(p).name for p in found.parents] == list(SKILLS)[:2]
    assert found.weights == pytest.approx((0.75, 0.25))
    assert found.base is None


ONE, TWO = "sorting", "reversing"
BOTH: dict[str, float | None] = {ONE: None, TWO: None}
LISTED: dict[str, float | None] = {ONE: 4, "base": None, TWO: 1}


@pytest.mark.parametrize(
    ("method", "base", "models", "parameters", "parents", "is_reference"),
    [
        # The base is mixed in: a parent as the others are.
        ("slerp", TWO, BOTH, {"t": 0.25}, {TWO: 0.75, ONE: 0.25}, False),
        ("slerp", None, BOTH, {"t": 0.25}, {ONE: 0.75, TWO: 0.25}, False),
        ("linear", ONE, {TWO: 3, ONE: 1}, {}, {ONE: 0.25, TWO: 0.75}, False),
        ("karcher", ONE, {TWO: 3, ONE: 1}, {}, {ONE: 0.25, TWO: 0.75}, False),
        ("nearswap", ONE, {TWO: None}, {}, {ONE: 0.5, TWO: 0.5}, False),
        ("arcee_fusion", ONE, {TWO: None}, {}, {ONE: 0.5, TWO: 0.5}, False),
        # It is a point of reference, listed or not; or gives config and tokenizer only.
        ("ties", "base", LISTED, {}, {ONE: 0.8, TWO: 0.2}, True),
        ("ties", "base", {ONE: 4, TWO: 1}, {}, {ONE: 0.8, TWO: 0.2}, True),
        ("karcher", "base", LISTED, {"origin": "base"}, {ONE: 0.8, TWO: 0.2}, True),
        ("linear", "base", BOTH, {}, {ONE: 0.5, TWO: 0.5}, True),
        # Weights that are zero, given for all, below zero.
        ("linear", None, {ONE: 1, TWO: 0}, {}, {ONE: 1.0, TWO: 0.0}, False),
        ("linear", None, BOTH, {"weight": 2.0}, {ONE: 0.5, TWO: 0.5}, False),
        ("linear", None, {ONE: -1, TWO: 3}, {}, {ONE: 0.5, TWO: 0.5}, False),
    ],
)
def test_roles_and_shares_are_the_recipes(
    method: str,
    base: str | None,
    models: dict[str, float | None],
    parameters: dict[str, Any],
    parents: dict[str, float],
    is_reference: bool,
    tmp_path: Path,
) -> None:
    out = tmp_path / "merged"
    run_recipe(_recipe(method, base, models, parameters), out)
    found = lineage(out, (), None, None)
    assert dict(zip(map(short_name, found.parents), found.weights, strict=True)) == pytest.approx(parents)
    assert found.base == (str(BASE) if is_reference else None)
    negative = min(weight or 0 for weight in models.values()) < 0
    assert any("count equally" in note for note in found.notes) == negative


def _recipe(
    method: str, base: str | None, models: dict[str, float | None], parameters: dict[str, Any]
) -> Recipe:
    """A recipe of the demo's models, each with its weight, if any."""
    entries = [
        {"model": str(demo_folder(name)), "parameters": {} if weight is None else {"weight": weight}}
        for name, weight in models.items()
    ]
    place = None if base is None else str(demo_folder(base))
    return parse_recipe(
        {"merge_method": method, "base_model": place, "models": entries, "parameters": parameters}
    )


def test_shares_of_layers_are_the_parts_of_the_elements(tmp_path: Path) -> None:
    """Weights by filter mean over the elements, of which ``only`` leaves some out; slices count theirs."""
    folders = {name: str(demo_folder(name)) for name in (ONE, TWO)}
    filtered = {"merge_method": "linear", "parameters": {"normalize": False}, "models": [
        {"model": folders[ONE], "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 0}]}},
        {"model": folders[TWO], "parameters": {"weight": [{"filter": "mlp", "value": 0}, {"value": 1}]}},
    ]}  # fmt: skip
    stacked = {"merge_method": "passthrough", "slices": [
        {"sources": [{"model": folders[ONE], "layer_range": [0, 1]}]},
        {"sources": [{"model": folders[TWO], "layer_range": [0, 1]}]},
    ]}  # fmt: skip
    state = load_file(EXPERTS[0] / "model.safetensors")
    mlp = sum(v.numel() for k, v in state.items() if "mlp" in k)
    total = sum(v.numel() for v in state.values())
    for number, recipe in enumerate((filtered, {**filtered, "only": ["*.mlp.*"]}, stacked)):
        run_recipe(parse_recipe(recipe), tmp_path / str(number))
    whole, some, layers = (lineage(tmp_path / str(number), (), None, None).weights for number in range(3))
    assert whole == pytest.approx((mlp / total, 1 - mlp / total))
    assert some == pytest.approx((1, 0))
    assert layers[1] > 0.1


def test_told_parents_keep_their_shares_and_their_base(tmp_path: Path) -> None:
    out, base = tmp_path / "merged", tmp_path / "base"
    shutil.copytree(BASE, base)
    merge(EXPERTS[:3], Linear(weight=(4.0, 2.0, 2.0)), base=base, out=out)
    swapped = lineage(out, [EXPERTS[1], EXPERTS[0]], None, None)
    assert swapped.weights == pytest.approx((1 / 3, 2 / 3)) and swapped.base == str(base)
    assert lineage(out, [EXPERTS[0], base], None, None).base is None, "it is told to be a parent"
    shutil.rmtree(base)
    moved = lineage(out, EXPERTS, None, None)
    assert moved.base is None and any("pass --base" in note for note in moved.notes)


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


def test_lineage_finds_parents_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands under the same name in the caller's folder is another model."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        for expert in EXPERTS[:2]:
            shutil.copytree(expert, tmp_path / name / expert.name)
    monkeypatch.chdir(tmp_path / "here")
    merge([expert.name for expert in EXPERTS[:2]], Linear(), out=tmp_path / "merged")
    monkeypatch.chdir(tmp_path / "there")
    found = lineage(tmp_path / "merged", (), None, None)
    assert [Path(p) for p in found.parents] == [tmp_path / "here" / expert.name for expert in EXPERTS[:2]]


def test_reviewed_merges_can_be_reproduced(tmp_path: Path, text: Path) -> None:
    out, report = tmp_path / "merged", tmp_path / "report.json"
    words = ["merge", *EXPERTS[:2], "-o", out, "--eval", "--data", text, "--report", report]
    code, printed = run(*words)
    assert code == 0, printed
    assert "# Evaluation" in (out / "README.md").read_text() and f"report: {report}" in printed
    assert run("verify", out)[0] == 0
    assert run("reproduce", out)[0] == 0


def test_lineage_takes_a_moved_parent_by_its_name(mean: Path, tmp_path: Path) -> None:
    moved = [tmp_path / folder.name for folder in EXPERTS]
    assert lineage(mean, moved, None, None).parents == tuple(map(str, moved))


def test_outlets_replace_a_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text("old")

    class Broken:
        def to_json(self) -> str:
            raise RuntimeError

        to_markdown = to_html = to_json

    with pytest.raises(RuntimeError):
        write_outlets(cast("Evaluation", Broken()), [file])
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(MergeError, match="is a folder"):
        (tmp_path / "x.md").mkdir()
        check_outlets([tmp_path / "x.md"])


# Parents that are no plain safetensors folders


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
