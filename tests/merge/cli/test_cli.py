"""The command line as a stranger meets it: help, plans, options, and one line for every mistake."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from merge_models.merge.checkpoint import Staging
from merge_models.merge.cli import COMMANDS, main
from merge_models.merge.cli.progress import Progress
from merge_models.merge.cli.results import figure_lines
from merge_models.merge.demo import demo_folder
from tests.helpers import (
    CONFIG,
    SHAPES,
    assert_same_bits,
    entry,
    kept,
    listing,
    listing_without_kept,
    read_folder,
    tensors,
    write_folder,
    write_models,
    write_raw,
)


@pytest.fixture(autouse=True)
def process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that are called in this process must not end it, whatever threads other tests have left."""
    monkeypatch.setattr("merge_models.merge.cli.failures._has_other_threads", lambda: False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with siblings m0, m1, m2 in it."""
    write_models(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: object) -> Result:
    """Runs a command in this process; anything but a clean exit is raised."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], prog_name="merge-models")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result) -> str:
    """The one line of a refusal."""
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("Error: ") and result.stderr.endswith("\n"), result.stderr
    assert result.stderr.count("\n") == 1 and len(result.stderr) < 2100, result.stderr
    return result.stderr


def command(script: str, *arguments: object, env: dict[str, object] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **{key: str(value) for key, value in (env or {}).items()}},
    )


# Mistakes


def _two(
    state: dict[str, torch.Tensor], config: Any = CONFIG, options: Sequence[str] = ()
) -> Callable[[Path], Sequence[object]]:
    """Merging m0 with a folder ``bad`` of the given tensors."""

    def make(place: Path) -> Sequence[object]:
        write_folder(place / "bad", state, config=config)
        return ["merge", "m0", "bad", "-o", "out", *options]

    return make


def _file(header: Any, data: bytes = b"", length: int | None = None) -> Callable[[Path], Sequence[object]]:
    def make(place: Path) -> Sequence[object]:
        write_raw(place / "bad" / "model.safetensors", header, data, length)
        return ["merge", "m0", "bad", "-o", "out"]

    return make


def _folder(name: str, content: bytes) -> Callable[[Path], Sequence[object]]:
    def make(place: Path) -> Sequence[object]:
        (place / "bad").mkdir()
        (place / "bad" / name).write_bytes(content)
        return ["merge", "m0", "bad", "-o", "out"]

    return make


def _cut(place: Path) -> Sequence[object]:
    file = place / "m1" / "model.safetensors"
    os.truncate(file, file.stat().st_size - 5)
    return ["merge", "m0", "m1", "-o", "out"]


def _say(*arguments: object) -> Callable[[Path], Sequence[object]]:
    return lambda place: arguments


def _recipe(text: str) -> Callable[[Path], Sequence[object]]:
    def make(place: Path) -> Sequence[object]:
        (place / "r.yml").write_text(text)
        return ["run", "r.yml", "-o", "out"]

    return make


def _without(name: str) -> dict[str, torch.Tensor]:
    return {key: value for key, value in tensors(1).items() if key != name}


F32 = entry("F32", [1], 0, 4)
TWO = "models: [{model: m0}, {model: m1}]\n"
OUT = ("m0", "m1", "-o", "out")
OTHER = {**CONFIG, "architectures": ["Qwen2ForCausalLM"]}
INTS = {"n": torch.tensor([1, 2])}
MISTAKES: dict[str, tuple[Callable[[Path], Sequence[object]], list[str]]] = {
    "missing folder": (_say("merge", "m0", "nowhere", "-o", "out"), ["nowhere", "check the path"]),
    "missing Hub id": (
        _say("merge", "m0", "no/where", "-o", "out"),
        ["no/where", "offline", "check the path"],
    ),
    "no weights": (_folder("config.json", b"{}"), ["bad", "no .safetensors", "name the folder"]),
    "pickled weights": (_folder("pytorch_model.bin", b"\x80\x02"), ["bad", "convert", "save_pretrained"]),
    "pickle in disguise": (
        _folder("model.safetensors", b"\x80\x04" + b"x" * 99),
        ["bad/model", "save_pretrained"],
    ),
    "truncated": (_cut, ["m1/model.safetensors", "'model.norm.weight'", "download or save it again"]),
    "lying header": (_file({"x": entry("F32", [2], 0, 4)}, b"1234"), ["bad/model", "'x'", "again"]),
    "header longer than the file": (_file({}, b"", 9999), ["bad/model.safetensors", "9999", "again"]),
    "overlapping": (_file({"x": F32, "y": F32}, b"1234"), ["bad/model", "'y'", "overlaps", "again"]),
    "out of range": (_file({"x": entry("F32", [1], 8, 12)}, b"1234"), ["bad/model", "'x'", "again"]),
    "unknown dtype": (
        _file({"x": entry("F7", [1], 0, 4)}, b"1234"),
        ["bad/model", "'x'", "'F7'", "save it as"],
    ),
    "index without shard": (
        _folder("model.safetensors.index.json", b'{"weight_map": {"x": "gone.safetensors"}}'),
        ["bad/model.safetensors.index.json", "gone.safetensors", "download it again"],
    ),
    "index goes outside": (
        _folder("model.safetensors.index.json", b'{"weight_map": {"x": "../m0/model.safetensors"}}'),
        ["bad/model.safetensors.index.json", "../m0", "outside its folder"],
    ),
    "config is a list": (_two(tensors(1), config=[]), ["bad/config.json", "not a plain JSON object"]),
    "tensor missing": (
        _two(_without("lm_head.weight")),
        ["bad: has no tensor 'lm_head.weight'", "m0 has", "same architecture"],
    ),
    "tensor too many": (
        _two({**tensors(1), "extra": torch.ones(1)}),
        ["m0: has no tensor 'extra'", "bad has", "same architecture"],
    ),
    "shapes differ": (
        _two({**tensors(1), "model.norm.weight": torch.ones(9)}),
        ["'model.norm.weight'", "[8] in m0", "[9] in bad"],
    ),
    "architectures differ": (
        _two(tensors(1), config=OTHER),
        ["m0 is LlamaForCausalLM", "bad is Qwen2ForCausalLM", "one architecture"],
    ),
    "quantised": (
        _two(tensors(1), config={**CONFIG, "quantization_config": {"quant_method": "gptq"}}),
        ["bad", "quantised (gptq)", "dequantise it first"],
    ),
    "NaN": (
        _two({**tensors(1), "model.norm.weight": torch.full((8,), torch.nan)}, options=["-q"]),
        ["bad", "'model.norm.weight'", "NaN or Inf", "--on-nonfinite keep"],
    ),
    "too many weights": (
        _say("merge", *OUT, "--weights", "1,2,3"),
        ["3 values for 2 models", "one per model"],
    ),
    "too few weights": (_say("merge", *OUT, "--weights", "1"), ["1 value for 2 models", "one per model"]),
    "weights of words": (_say("merge", *OUT, "--weights", "a,b"), ["--weights 'a,b'", "write .5,.3,.2"]),
    "no weights given": (_say("merge", *OUT, "--weights", ""), ["--weights ''", "write .5,.3,.2"]),
    "weight is NaN": (_say("merge", *OUT, "--weights", "nan,1"), ["'weight'", "finite", "nan"]),
    "weight is infinite": (_say("merge", *OUT, "--weights", "1e400,1"), ["'weight'", "finite", "inf"]),
    "weight is enormous": (_say("merge", *OUT, "--weights", "1e308,1e308"), ["'weight'", "within 1e30"]),
    "weights sum to zero": (
        _say("merge", *OUT, "--weights", "1,-1"),
        ["1, -1 sum to zero", "normalize: false"],
    ),
    "weights are all zero": (
        _say("merge", *OUT, "--weights", "0,0"),
        ["0, 0 sum to zero", "normalize: false"],
    ),
    "unknown method": (
        _say("merge", *OUT, "-m", "liner"),
        ["Error: unknown merge method 'liner'", "did you mean 'linear'?"],
    ),
    "seed out of range": (
        _say("merge", *OUT, "--seed", "1" + "0" * 30),
        ["Error: 'seed' should be less than 9223372036854775808"],
    ),
    "base missing": (_say("merge", *OUT, "-m", "task_arithmetic"), ["task_arithmetic", "--base"]),
    "only the base": (
        _say("merge", "m0", "--base", "m0", "-m", "task_arithmetic", "-o", "out"),
        ["no model to merge besides the base"],
    ),
    "unknown parameter": (_say("merge", *OUT, "--set", "weigth=1"), ["'weigth'", "did you mean 'weight'?"]),
    "setting without value": (_say("merge", *OUT, "--set", "x"), ["--set 'x'", "KEY=VALUE"]),
    "setting without key": (_say("merge", *OUT, "--set", "=1"), ["--set '=1'", "KEY=VALUE"]),
    "setting of the wrong type": (
        _say("merge", *OUT, "--set", "normalize=7"),
        ["'normalize'", "true or false", "7"],
    ),
    "setting that is no YAML": (
        _say("merge", *OUT, "--set", "normalize=!!bool x"),
        ["--set", "not valid YAML"],
    ),
    "setting with a broken date": (
        _say("merge", *OUT, "--set", "weight=2020-13-45"),
        ["--set", "not valid YAML"],
    ),
    "base of no name": (
        _say("merge", *OUT, "-m", "ties", "--base", ""),
        ["a model's name is empty", "give a folder"],
    ),
    "setting of nothing": (_say("merge", *OUT, "--set", "weight="), ["--set 'weight='", "has no value"]),
    "setting given twice": (
        _say("merge", *OUT, "--set", "weight=1", "--set", "weight=.5,.5"),
        ["--set weight stands twice"],
    ),
    "setting of too many models": (
        _say("merge", *OUT, "--set", "weight=.5,.3,.2"),
        ["has 3 values for 2 models", "weight=[.5,.3,.2]"],
    ),
    "setting with a gap": (_say("merge", *OUT, "--set", "weight=.5,"), ["'weight=.5,'", "a value is empty"]),
    "setting for all by model": (
        _say("merge", *OUT, "--set", "normalize=true,false"),
        ["'normalize' is one for all models", "normalize=[true,false]"],
    ),
    "setting by model and weights": (
        _say("merge", *OUT, "--set", "weight=.5,.5", "--weights", ".5,.5"),
        ["--weights and --set weight both"],
    ),
    "setting by model out of range": (
        _say("merge", *OUT, "--base", "m2", "-m", "ties", "--set", "density=.5,7"),
        ["'density'", "in [0, 1]", "7"],
    ),
    "unknown dtype asked for": (_say("merge", *OUT, "--dtype", "bf17"), ["'bf17'", "did you mean 'bf16'?"]),
    "dtype of integers": (_say("merge", *OUT, "--dtype", "int8"), ["'int8'", "known:", "float32"]),
    "shard size of words": (_say("merge", *OUT, "--shard-size", "big"), ["shard size 'big'", "write 5GB"]),
    "no threads": (_say("merge", *OUT, "--threads", "0"), ["--threads", "merge-models merge --help"]),
    "unknown option": (_say("merge", *OUT, "--wieghts", "1"), ["--wieghts", "--weights", "--help"]),
    "unknown command": (_say("mrege", *OUT), ["'mrege'", "merge", "--help"]),
    "no output": (_say("merge", "m0", "m1"), ["--out", "merge-models merge --help"]),
    "no models": (_say("merge", "-o", "out"), ["MODELS", "merge-models merge --help"]),
    "empty name": (_say("merge", "m0", "", "-o", "out"), ["empty", "give a folder"]),
    "name of control characters": (
        _say("merge", "m0", "\x1b[2J\n", "-o", "out"),
        [r"\x1b[2J\x0a", "check the path"],
    ),
    "endless name": (_say("merge", "m0", "x" * 5000, "-o", "out"), ["xxx…", "check the path"]),
    "nobody's home": (_say("merge", "m0", "~nobody-at-all/x", "-o", "out"), ["~nobody", "check the path"]),
    "output in an input": (
        _say("merge", "m0", "m1", "-o", "m1/out"),
        ["m1/out", "m1 overlap", "choose another"],
    ),
    "output is an input": (
        _say("merge", "m0", "m1", "-o", "m1", "--overwrite"),
        ["overlap", "choose another"],
    ),
    "output exists": (_say("merge", "m0", "m1", "-o", "m2"), ["m2 exists", "--overwrite"]),
    "output in a file": (
        _say("merge", "m0", "m1", "-o", "m2/config.json/x"),
        ["is no folder", "choose another"],
    ),
    "unknown method to explain": (_say("methods", "lienar"), ["'lienar'", "did you mean 'linear'?"]),
    "missing recipe": (_say("run", "none.yml", "-o", "out"), ["none.yml", "cannot be read", "No such file"]),
    "recipe is a folder": (_say("plan", "m0"), ["m0", "cannot be read"]),
    "unknown key": (
        _recipe(TWO + "merge_metod: linear"),
        ["r.yml", "'merge_metod'", "did you mean 'merge_method'?"],
    ),
    "unknown method in a recipe": (
        _recipe(TWO + "merge_method: tie"),
        ["r.yml", "'tie'", "did you mean 'ties'?"],
    ),
    "unknown parameter in a recipe": (
        _recipe(TWO + "merge_method: linear\nparameters: {normalise: true}"),
        ["r.yml", "'normalise'", "did you mean 'normalize'?"],
    ),
    "one tensor in whole numbers": (
        _two({**tensors(1), "model.norm.weight": torch.ones(8, dtype=torch.int32)}),
        ["'model.norm.weight'", "m0 has F32", "bad has I32", "save all alike"],
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_every_mistake_gets_one_line_that_names_the_fix(case: str, place: Path) -> None:
    make, words = MISTAKES[case]
    arguments = make(place)
    before = listing(place)
    text = refused(call(*arguments))
    for word in words:
        assert word in text, text
    assert listing_without_kept(place) == before
    assert bool(kept(place)) == ("finished and kept" in text)


def test_whole_numbers_that_differ_are_named(place: Path) -> None:
    write_folder(place / "a", {**tensors(0), "n": torch.tensor([1, 2])})
    write_folder(place / "b", {**tensors(1), "n": torch.tensor([1, 3])})
    before = listing(place)
    text = refused(call("merge", "a", "b", "-o", "out", "-q"))
    assert "'n' (I64) differs between a and b" in text and "make them equal" in text
    assert listing(place) == before


def test_a_small_disk_is_known_beforehand(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    text = refused(call("merge", "m0", "m1", "-o", "out"))
    assert "out: needs" in text and "make room or choose another disk" in text
    assert not (place / "out").exists()


def test_no_memory_is_no_traceback(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("merge_models.merge.strategies.families.span.weighted_sum", fail)
    assert "--threads" in refused(call("merge", "m0", "m1", "-o", "out", "-q"))
    assert not (place / "out").exists()


# Help


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself_and_ends_with_an_example(name: str) -> None:
    result = call(name, "--help")
    text = result.output.split("Options:")[0].rstrip()
    assert result.exit_code == 0 and result.stderr == ""
    assert text.splitlines()[-1].strip().startswith(f"Example: merge-models {name}")
    assert call(name, "-h").output == result.output


def test_the_program_itself_shows_help_and_version() -> None:
    assert "Example: merge-models merge" in call("--help").output
    assert set(COMMANDS) >= {"demo", "merge", "methods", "plan", "run"}
    assert all(name in call("--help").output for name in COMMANDS)
    assert call("--version").exit_code == 0


def test_help_is_fast() -> None:
    """CPU time, so that a busy machine does not matter."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = "from merge_models.merge.cli import main; main(prog_name='merge-models')"
    output, error = command(script, "--help").communicate(timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "Usage: merge-models" in output, error
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_methods_are_told_from_their_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    table = call("methods").stdout
    documents = json.loads(call("methods", "--json").stdout)
    assert {"linear", "task_arithmetic"} <= {document["name"] for document in documents}
    for document in documents:
        assert document["name"] in table and document["summary"]
        text = call("methods", document["name"]).stdout
        for parameter in document["parameters"]:
            assert parameter["doc"] in text and parameter["name"] in text
        assert json.loads(call("methods", document["name"], "--json").stdout) == document
        for alias in document["aliases"]:
            assert call("methods", alias).stdout == text


@pytest.mark.parametrize("columns", [50, 80, 100, 140])
def test_methods_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10000")
    whole = call("methods").stdout
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in ((), ("task_arithmetic",), ("orthogonal",)):
        text = call("methods", *arguments).stdout
        assert max(map(len, text.splitlines())) <= columns and "``" not in text
    words = set(re.findall(r"\w{4,}", whole)) - {"method", "carrier", "what", "does"}
    assert words <= set(re.findall(r"\w+", call("methods").stdout))


# Options


def test_one_value_per_model_is_no_gradient(place: Path) -> None:
    """``--set density=.3,.5`` is one for each model, a list in brackets runs over depth, as in mergekit."""
    ties = ("merge", "m0", "m1", "--base", "m2", "-m", "ties")
    listed = call(*ties, "-o", "listed", "--set", "density=.3,.5")
    bracketed = call(*ties, "-o", "bracketed", "--set", "density=[.3,.5]")
    assert "note" not in listed.output
    assert "note: density: [0.3, 0.5] is a gradient from the first layer to the last" in bracketed.output
    assert "--set density=0.3,0.5" in bracketed.output
    assert "note" not in call(*ties, "-o", "three", "--set", "density=[.3,.5,.7]").output
    assert call(*ties, "-o", "quiet", "--set", "density=[.3,.5]", "-q").output == ""
    recipe = {
        "merge_method": "ties",
        "base_model": "m2",
        "models": [{"model": f"m{n}", "parameters": {"density": d}} for n, d in enumerate((0.3, 0.5))],
    }
    Path("recipe.yml").write_text(json.dumps(recipe))
    call("run", "recipe.yml", "-o", "written", "-q")
    wanted, gradient = read_folder(place / "written"), read_folder(place / "bracketed")
    for name, tensor in read_folder(place / "listed").items():
        assert_same_bits(tensor, wanted[name], name)
    assert any(not torch.equal(wanted[name], gradient[name]) for name in wanted)


def test_weights_settings_and_dtype_reach_the_merge(place: Path) -> None:
    parts = [read_folder(place / f"m{n}") for n in range(3)]

    def merged(*options: object) -> dict[str, torch.Tensor]:
        result = call("merge", "m0", "m1", "m2", "-o", "out", "--overwrite", "-q", *options)
        assert (result.exit_code, result.output) == (0, "")
        return read_folder(place / "out")

    for options, weights in [
        (("--weights", ".5,.3,.2"), (0.5, 0.3, 0.2)),
        (("--weights", " 5, 3, 2 "), (0.5, 0.3, 0.2)),
        (("--set", "weight=.5, 3e-1,.2"), (0.5, 0.3, 0.2)),
        (("--weights", "1,2,-1", "--set", "normalize=false"), (1.0, 2.0, -1.0)),
        (("--set", "weight=2e-1", "--set", "normalize=false"), (0.2, 0.2, 0.2)),
        (("-m", "soup", "--seed", "7"), (1 / 3, 1 / 3, 1 / 3)),
    ]:
        found = merged(*options, "--dtype", "float64")
        for name in SHAPES:
            exact = sum(w * part[name].double() for w, part in zip(weights, parts, strict=True))
            torch.testing.assert_close(found[name], exact, rtol=1e-14, atol=1e-14)
    assert {t.dtype for t in merged("--dtype", "torch.bf16").values()} == {torch.bfloat16}
    assert len(list((place / "out").glob("*.safetensors"))) == 1
    merged("--shard-size", "400B", "--threads", "5")
    assert len(list((place / "out").glob("*.safetensors"))) > 1


def test_task_arithmetic_from_the_command_line(place: Path) -> None:
    result = call(
        "merge", "m1", "m2", "--base", "m0", "-m", "task_arithmetic", "--weights", "0.5,-1",
        "--set", "lambda=0.8", "--dtype", "f64", "-o", "out",
    )  # fmt: skip
    assert result.exit_code == 0
    base, one, two = (read_folder(place / f"m{n}") for n in range(3))
    for name, tensor in read_folder(place / "out").items():
        zero = base[name].double()
        exact = zero + 0.8 * (0.5 * (one[name].double() - zero) - (two[name].double() - zero))
        torch.testing.assert_close(tensor, exact, rtol=1e-13, atol=1e-13)


def test_what_is_said_where(place: Path) -> None:
    loud = call("merge", "m0", "m1", "-o", "a")
    assert re.match(r"a: 1.54 KB written in \d+\.\d s \(\d[\d.]* .?B/s read and written\)", loud.stdout)
    assert [line.split("%")[0].strip() for line in loud.stderr.splitlines()] == ["100"]
    quiet = call("merge", "m0", "m1", "-o", "b", "-q")
    assert (quiet.output, quiet.stderr) == ("", "")
    verbose = call("merge", "m0", "m1", "-o", "c", "-v")
    assert "linear: 2 models" in verbose.stdout and "m0: 6 tensors" in verbose.stdout


def test_progress_of_a_long_merge_is_a_line_a_tenth_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock) * 0.7)
    for _ in range(2):  # a file of two recipes: each is told alone
        with Progress(quiet=False) as progress:
            progress.start(1000)
            for _ in range(1000):
                progress.advance(1)
        tenths = [int(line.split("%")[0]) for line in capsys.readouterr().err.splitlines()]
        assert tenths == sorted(set(tenths)) and tenths[-1] == 100 and len(tenths) > 3


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ([1.0, 1.0, 1.0], "1 everywhere"),
        ([1.0, 1.0 + 1e-9, 1.0], "1 everywhere to 1.0e-09 of it"),
        ([0.99998, 1.0, 1.00001], "median 1, 0.99998 to 1.00001"),
        ([0.25, 0.5, 0.75], "median 0.5, 0.25 to 0.75"),
        ([3, 7, 7], "median 7, 3 to 7"),
        ([0.0, 0.0, 1e-300], "median 0, 0 to 1e-300"),
    ],
)
def test_figures_do_not_hide_differences(values: list[float], told: str) -> None:
    lines = figure_lines({str(n): {"x": value} for n, value in enumerate(values)}, False)
    assert lines == [f"  x: {told}"]


def test_progress_on_a_terminal_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with Progress(quiet=False) as progress:
        progress.start(10**9)
        progress.advance(10**9)
    assert "merging" in terminal.getvalue() and "1.0" in terminal.getvalue()


# Plans


def _plan(place: Path, recipe: str, *options: object) -> Result:
    (place / "r.yml").write_text(recipe)
    before = listing(place)
    result = call("plan", "r.yml", *options)
    assert result.exit_code == 0 and result.stderr == ""
    assert listing(place) == before
    return result


RECIPE = "merge_method: task_arithmetic\nbase_model: base\nmodels: [a, b]\ndtype: bfloat16\n"


@pytest.fixture
def planned(place: Path) -> Path:
    state = {"n": torch.tensor([7]), "empty": torch.ones(0, 3)}
    write_folder(place / "a", {**tensors(1), **state}, files={"tokenizer.json": "{}"})
    write_folder(place / "b", {**tensors(2), **state})
    base = {**tensors(0), **state, "spare": torch.ones(4)}
    write_folder(place / "base", base, shards=2, files={"tokenizer.json": "{}", "train.py": ""})
    return place


def test_plan_as_json_says_all(planned: Path) -> None:
    plan = json.loads(_plan(planned, RECIPE, "--json", "--threads", "3", "--shard-size", "300").stdout)
    assert plan["recipe"]["merge_method"] == "task_arithmetic" and plan["donor"] == "base"
    found = {t["name"]: (t["shape"], t["dtype"], t["action"], t["strategy"]) for t in plan["tensors"]}
    expected: dict[str, tuple[list[int], str, str, str | None]] = {
        n: (list(s), "bfloat16", "merge", "task_arithmetic") for n, s in SHAPES.items()
    }
    expected["n"] = ([1], "int64", "copy", None)
    expected["empty"] = ([0, 3], "bfloat16", "merge", "task_arithmetic")
    assert found == expected
    assert plan["dropped"] == [{"tensor": "spare", "model": "base", "reason": "only the base has it"}]
    count = sum(t.numel() for t in tensors(0).values())
    assert plan["parameters"] == count + 1
    assert plan["bytes_out"] == 2 * count + 8
    assert plan["bytes_in"] == 3 * 4 * count + 2 * 8
    assert plan["copied_files"] == ["tokenizer.json"] and plan["threads"] == 3
    assert [f["name"] for f in plan["left_files"]] == ["train.py"]
    assert sum(f["bytes"] for f in plan["files"]) == plan["disk_bytes"]
    call("run", "r.yml", "-o", "out", "--shard-size", "300", "-q")
    for file in plan["files"]:
        assert (planned / "out" / file["name"]).stat().st_size == file["bytes"]
    written = read_folder(planned / "out")
    assert {n: str(t.dtype) for n, t in written.items()} == {n: f"torch.{f[1]}" for n, f in found.items()}


def test_plan_as_text_says_what_and_why(planned: Path) -> None:
    text = _plan(planned, RECIPE).stdout
    for words in (
        "task_arithmetic: 3 models", "base   base: 9 tensors", "parent a: 8 tensors", "merged 7 tensors",
        "copied n: not floating point: must be equal in all models",
        "dropped spare of base: only the base has it", "files  tokenizer.json",
        "left   train.py: code is not copied", "in 1 file\n",
    ):  # fmt: skip
        assert words in text, text


def test_plans_of_hostile_names_stay_on_their_lines(place: Path) -> None:
    state = {"\x1b[2J\nmerged 999 tensors": torch.tensor([1])}
    for name in "ab":
        write_folder(place / name, state)
    lines = _plan(place, "merge_method: linear\nmodels: [a, b]").stdout.splitlines()
    assert not any("\x1b" in line or line.startswith("merged 999") for line in lines)
    assert any(r"copied \x1b[2J\x0amerged 999 tensors:" in line for line in lines)


# The same bytes, and a clean end

METHODS = ("linear", "task_arithmetic", "karcher", "ties", "dare_linear")
BASELESS = ("linear", "karcher")
_MERGES = f"""
import sys
from merge_models.merge.cli import main
threads, out = sys.argv[1:]
for method in {METHODS}:
    base = [] if method in {BASELESS} else ["--base", "m0"]
    main(["merge", "m1", "m2", *base, "-m", method, "-q", "--threads", threads, "-o", out + "/" + method],
         standalone_mode=False)
"""


def test_bytes_do_not_depend_on_threads_or_hash_seed(place: Path) -> None:
    shapes = {**SHAPES, "long": (700, 600)}
    for seed in range(3):
        write_folder(
            place / f"m{seed}", tensors(seed, shapes=shapes), files={"b.json": "{}", "a.txt": str(seed)}
        )
    started = [command(_MERGES, n, f"out{n}", env={"PYTHONHASHSEED": n}) for n in (2, 7)]
    for method in METHODS:
        base = [] if method in BASELESS else ["--base", "m0"]
        assert (
            call("merge", "m1", "m2", *base, "-m", method, "--threads", 1, "-o", f"out1/{method}").exit_code
            == 0
        )
    for process in started:
        error = process.communicate(timeout=120)[1]
        assert process.returncode == 0, error
    first = listing(place / "out1")
    assert len([name for name in first if name.endswith("model.safetensors")]) == len(METHODS)
    assert listing(place / "out2") == first and listing(place / "out7") == first


_SLOW = """
import os, time
read = os.preadv
os.preadv = lambda *a: (time.sleep(0.1), read(*a))[1]
from merge_models.merge.cli import main
main(prog_name="merge-models")
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "stopped")],
)
def test_a_stopped_merge_ends_at_once_and_goes_on(number: int, code: int, word: str, place: Path) -> None:
    """In the middle of a merge that would take a minute: reading a block takes a tenth of a second."""
    shapes = {f"layer.{n}": (4,) for n in range(300)}
    for seed in range(2):
        write_folder(place / f"m{seed}", tensors(seed, shapes=shapes))
    before = listing(place)
    process = command(_SLOW, "merge", "m0", "m1", "-o", "deep/out", "--threads", "1", "-q")
    journal = place / "deep/.out.merging/journal"
    while process.poll() is None and not (journal.is_file() and journal.read_bytes().count(b"\n") > 2):
        time.sleep(0.01)
    process.send_signal(number)
    started = time.monotonic()
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (code, "")
    assert time.monotonic() - started < 1.5
    found = re.fullmatch(
        rf"Error: {word}; (\d+) of 300 tensors are finished and kept in \.out\.merging:.*\n", error
    )
    assert found and "the same command goes on from there, or from the start with --restart" in error
    assert listing_without_kept(place) == {**before, "deep": b""}
    again = call("merge", "m0", "m1", "-o", "deep/out")
    assert f"kept from an earlier run, and checked: {found[1]} tensor" in again.output
    assert call("merge", "m0", "m1", "-o", "fresh").exit_code == 0
    assert listing(place / "deep/out") == listing(place / "fresh")
    assert not kept(place)


def test_stopped_before_anything_is_finished_leaves_nothing(place: Path) -> None:
    shapes = {f"layer.{n}": (4,) for n in range(300)}
    for seed in range(2):
        write_folder(place / f"m{seed}", tensors(seed, shapes=shapes))
    before = listing(place)
    slower = _SLOW.replace("sleep(0.1)", "sleep(1.5)")
    process = command(slower, "merge", "m0", "m1", "-o", "deep/out", "--threads", "1", "-q")
    while process.poll() is None and not list(place.glob("deep/.out.merging/new/model.safetensors")):
        time.sleep(0.01)
    process.terminate()
    started = time.monotonic()
    error = process.communicate(timeout=60)[1]
    assert (process.returncode, error) == (143, "Error: stopped; nothing was published\n")
    assert time.monotonic() - started < 1.5
    assert listing(place) == before


NOTHING = "nothing was published: the same command begins again"
INTERRUPTED: dict[str, tuple[str, list[str], str]] = {
    "while it measures": ("repairs.run._goals", [], NOTHING),
    "while it writes": ("repairs.folder.write_record", [], NOTHING),
    "after the rename": ("repairs.folder.Staging.publish", [], "the output is complete"),
    "while it measures the result": (
        "evaluation.evaluate", ["--report", "r.json"],
        "out is complete, its report is not written: merge-models eval out measures it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", INTERRUPTED)
def test_an_interrupted_repair_says_what_is_there(
    case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, options, told = INTERRUPTED[case]
    assert call("merge", demo_folder("sorting"), demo_folder("adding"), "-o", "merged", "-q").exit_code == 0
    publish = Staging.publish

    def interrupted(*given: Any, **options: Any) -> Any:
        if where.endswith("publish"):
            publish(given[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(f"merge_models.evals.{where}", interrupted)
    done = call("repair", "merged", "-o", "out", "--tokens", "256", "-q", *options)
    assert (done.exit_code, done.stderr) == (130, f"Error: interrupted; {told}\n")
    assert ((place / "out").is_dir(), kept(place)) == ("is complete" in told, [])


def test_interrupted_commands_that_publish_nothing_do_not_speak_of_it(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*given: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("merge_models.evals.evaluation.evaluate", interrupted)
    done = call("eval", "m0", "-p", "m1")
    assert (done.exit_code, done.stderr) == (130, "Error: interrupted\n")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_system_that_takes_no_files_is_told_as_such(place: Path) -> None:
    done = call("merge", "m0", "m1", "-o", "/proc/x")
    assert done.exit_code == 2
    assert done.stderr == (
        "Error: /proc/x: cannot be made: its file system takes no files; choose another output\n"
    )


_MAIN = "from merge_models.merge.cli import main; main(prog_name='merge-models')"
_PRINTING = {
    "help of a command": ("merge", "--help"),
    "methods": ("methods",),
    "plan": ("plan", "r.yml"),
}


@pytest.fixture
def printing(place: Path) -> Path:
    (place / "r.yml").write_text(TWO + "merge_method: linear")
    return place


@pytest.mark.parametrize("case", ["help of a command", "methods", "plan"])
def test_a_closed_pipe_ends_quietly(case: str, printing: Path) -> None:
    with command(_MAIN, *_PRINTING[case]) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("case", ["help of a command", "methods"])
def test_a_full_output_is_one_line(case: str, printing: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, *_PRINTING[case]], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("Error: standard output cannot be written: No space left"), done.stderr
