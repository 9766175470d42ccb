"""From folders to a verdict: the API and the commands, on the demo's real models and on broken ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from merge_models.evals.evaluate import evaluate
from merge_models.evals.lineage import lineage
from merge_models.evals.outlets import check_outlets, write_outlets
from merge_models.evals.schema import Evaluation
from merge_models.merge import merge
from merge_models.merge.cli import main
from merge_models.merge.demo.skills import SKILLS, demo_folder
from merge_models.merge.errors import MergeError
from merge_models.merge.strategies import Linear, TaskArithmetic

EXPERTS = [demo_folder(name) for name in SKILLS]
BASE = demo_folder("base")
QUICK: dict[str, Any] = {"measure": ("weights", "activations"), "tokens": 1536, "length": 32}


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
    found = evaluate(mean, data=text, **QUICK)
    assert found.verdict is not None and found.verdict.status == "healthy", found.verdict.summary
    assert [p.name for p in found.parents] == list(SKILLS)
    assert [p.weight for p in found.parents] == pytest.approx([1 / 3] * 3)
    assert set(found.verdict.by_skill) == set(SKILLS)


def test_equal_parents_measure_as_equal(tmp_path: Path, text: Path) -> None:
    out = tmp_path / "merged"
    merge([EXPERTS[0], EXPERTS[0]], Linear(), out=out)
    found = evaluate(out, data=text, **QUICK)
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
    found = evaluate(out, EXPERTS, BASE, data=text, **QUICK)
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
    found = evaluate(out, data=text, **QUICK)
    assert found.verdict is not None and found.verdict.status != "healthy"
    variance = next(f for f in found.verdict.findings if f.cause == "variance collapse")
    assert variance.layers and "layer" in variance.where
    assert found.activations is not None and found.activations.head is not None
    parents = found.activations.head.loss
    assert parents[found.parents[0].name].value == pytest.approx(
        parents[found.parents[1].name].value, rel=1e-3
    )


def test_nan_is_a_verdict_not_a_crash(tmp_path: Path, text: Path) -> None:
    def poison(name: str, value: torch.Tensor) -> torch.Tensor:
        return value * float("nan") if "layers.1.mlp.up" in name else value

    out = edited(EXPERTS[0], tmp_path / "merged", poison)
    found = evaluate(out, EXPERTS[:2], data=text, **QUICK)
    assert found.verdict is not None and found.verdict.status == "collapsed"
    assert "not finite" in {f.cause for f in found.verdict.findings}
    Evaluation.from_json(found.to_json())


def test_weights_only_needs_no_model_that_runs(mean: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    shutil.copytree(mean, out)
    (out / "config.json").write_text("{}")
    found = evaluate(out, EXPERTS, BASE, measure=("weights",))
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
    assert code == 2, printed
    lines = [line for line in printed.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1 and message.format(**names) in lines[0]
    assert "Traceback" not in printed


# Lineage and outlets


def test_lineage_reads_the_recipes_weights(tmp_path: Path) -> None:
    out = tmp_path / "merged"
    merge(EXPERTS[:2], Linear(weight=(3.0, 1.0)), out=out)
    found = lineage(out, (), None, None)
    assert [Path(p).name for p in found.parents] == list(SKILLS)[:2]
    assert found.weights == pytest.approx((0.75, 0.25))
    assert found.base is None


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
        write_outlets(Broken(), [file])
    assert file.read_text() == "old" and list(tmp_path.iterdir()) == [file]
    with pytest.raises(MergeError, match="is a folder"):
        (tmp_path / "x.md").mkdir()
        check_outlets([tmp_path / "x.md"])
