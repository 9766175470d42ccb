"""The commands eval and repair: reports, exit codes, errors of one line."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from merge_models.evals.schema import Evaluation, Outcome, Verdict
from merge_models.merge import merge
from merge_models.merge.cli.verdicts import exit_by_verdict
from merge_models.merge.strategies import TaskArithmetic
from tests.evals.merges import BASE, EXPERTS, run


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
