"""Files of torch.save: read only where allowed, by block, to the bytes of their safetensors twins."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from merge_models.merge import merge
from merge_models.merge.api.reproduce import reproduce
from merge_models.merge.api.running import run_recipe
from merge_models.merge.checkpoint import open_checkpoint
from merge_models.merge.checkpoint.sources.archive import MAX_PICKLE
from merge_models.merge.checkpoint.sources.pickled import PickledCheckpoint
from merge_models.merge.cli import main
from merge_models.merge.errors import ChangedError, CheckpointError, MergeError
from merge_models.merge.publishing.preparation import prepare
from merge_models.merge.publishing.verify import verify
from merge_models.merge.recipes.recipe import parse_recipe
from merge_models.merge.strategies import Linear, Ties
from tests.helpers import CONFIG, write_folder, write_json

BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"


def state(seed: int = 0) -> dict[str, Tensor]:
    """Tensors of every kind of storage: own, shared, transposed, sliced, empty, scalar."""
    draw = torch.Generator().manual_seed(seed)
    table, other = torch.randn(40, 24, generator=draw), torch.randn(16, 40, generator=draw)
    return {
        "tied.a": table,
        "tied.b": table,
        "rows": other[3:9],
        "columns": other[:, 5:21],
        "turned": other.t(),
        "permuted": torch.randn(3, 4, 5, generator=draw).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(torch.randn(8, generator=draw)),
        "half": torch.randn(6, 6, generator=draw).half(),
        "brain": torch.randn(6, 6, generator=draw).bfloat16().t(),
        "double": torch.randn(7, generator=draw).double(),
        "whole": torch.arange(-3, 9, dtype=torch.int8),
        "flags": torch.tensor([True, False, True]),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
    }


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, each in memory of its own, as safetensors wants them."""
    return {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}


def folder_of(place: Path, content: Any, name: str = BIN) -> Path:
    place.mkdir()
    write_json(place / "config.json", CONFIG)
    torch.save(content, place / name)
    return place


def twins(place: Path, count: int = 2) -> tuple[list[Path], list[Path]]:
    """The same models as pickles and as safetensors."""
    pickled = [folder_of(place / f"p{n}", state(n)) for n in range(count)]
    return pickled, [write_folder(place / f"s{n}", plain(state(n))) for n in range(count)]


def weights_of(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}


def read_all(model: Any, block: int = 64) -> dict[str, bytes]:
    """Every tensor's bytes, read in blocks of so many elements."""
    import numpy as np

    found = {}
    for name, info in model.tensors.items():
        step, parts = block * info.dtype.size, []
        for start in range(0, info.nbytes, step):
            stop = min(start + step, info.nbytes)
            parts.append(model.read(info, start, stop, np.empty(step, np.uint8)).tobytes())
        found[name] = b"".join(parts)
    return found


def as_bytes(tensors: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {
        name: t.reshape(-1).view(torch.uint8).numpy().tobytes() if t.numel() else b""
        for name, t in plain(tensors).items()
    }


LAYOUTS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "flat": lambda s: s,
    "ordered": OrderedDict,
    "nested": lambda s: {"state_dict": s, "epoch": 3},
    "model": lambda s: {"model": OrderedDict(s), "optimizer": {"lr": 0.1}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [BIN, "weights.pt", "weights.pth", "weights.ckpt"])
def test_every_layout_reads_as_its_tensors(tmp_path: Path, layout: str, name: str) -> None:
    folder = folder_of(tmp_path / "m", LAYOUTS[layout](state()), name)
    torch.save({"lr": 1}, folder / "training_args.bin")
    for place in (folder, folder / name):
        model = open_checkpoint(place, allow_pickle=True)
        assert isinstance(model, PickledCheckpoint)
        assert read_all(model) == as_bytes(state())
        model.check_unchanged()
        model.close()
        assert {n: i.shape for n, i in model.tensors.items()} == {n: t.shape for n, t in state().items()}


def test_a_module_and_its_optimizer(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    file = tmp_path / "run.pt"
    torch.save(
        {"model": module.state_dict(), "optim": torch.optim.Adam(module.parameters()).state_dict()}, file
    )
    assert read_all(open_checkpoint(file, allow_pickle=True)) == as_bytes(module.state_dict())


def test_safetensors_come_first_and_are_no_pickles(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", plain(state(1)))
    torch.save(state(2), folder / BIN)
    model = open_checkpoint(folder, allow_pickle=True)
    assert not isinstance(model, PickledCheckpoint)
    assert read_all(model) == as_bytes(state(1))
    (folder / "model.safetensors").rename(folder / "odd.bin")
    assert read_all(open_checkpoint(folder / "odd.bin", allow_pickle=True)) == as_bytes(state(1))


def sharded(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", CONFIG)
    weight_map = {}
    for number in range(2):
        name = f"pytorch_model-{number + 1:05d}-of-00002.bin"
        part = {key: tensors[key] for key in list(tensors)[number::2]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    write_json(folder / BIN_INDEX, {"weight_map": weight_map})
    return folder


def test_shards(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "m", state())
    assert read_all(open_checkpoint(folder, allow_pickle=True)) == as_bytes(state())
    index = json.loads((folder / BIN_INDEX).read_text())
    index["weight_map"]["more"] = "pytorch_model-00001-of-00002.bin"
    write_json(folder / BIN_INDEX, index)
    with pytest.raises(CheckpointError, match="'more'"):
        open_checkpoint(folder, allow_pickle=True)
    index["weight_map"]["more"] = "../m/pytorch_model-00001-of-00002.bin"
    write_json(folder / BIN_INDEX, index)
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(folder, allow_pickle=True)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("strategy", [Linear(weight=(0.25, 0.75)), Ties(density=0.5)])
def test_merges_give_the_bytes_of_their_twins(tmp_path: Path, strategy: Any, threads: int) -> None:
    pickled, safe = twins(tmp_path, 3)
    for name, (base, *models), allow in (("p", pickled, True), ("s", safe, False)):
        out = tmp_path / name
        merge(models, strategy, base=base, out=out, threads=threads, allow_pickle=allow)
    left, right = weights_of(tmp_path / "p"), weights_of(tmp_path / "s")
    assert as_bytes(left) == as_bytes(right) and set(left) == set(state())


def test_a_pickle_is_converted_to_its_twin(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", state())
    done = CliRunner().invoke(
        main, ["merge", str(folder), "-m", "passthrough", "--allow-pickle", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 0, done.output
    assert as_bytes(weights_of(tmp_path / "out")) == as_bytes(state())
    assert not list((tmp_path / "out").glob("*.bin"))


@pytest.mark.parametrize("command", ["merge", "run", "plan", "eval"])
def test_refused_unless_allowed(tmp_path: Path, command: str) -> None:
    folder = folder_of(tmp_path / "m", state())
    (tmp_path / "r.yml").write_text(f"merge_method: passthrough\nmodels: [{{model: {folder}}}]\n")
    recipe, out = str(tmp_path / "r.yml"), ["-o", str(tmp_path / "out")]
    lines = {
        "merge": ["merge", str(folder), "-m", "passthrough", *out],
        "run": ["run", recipe, *out],
        "plan": ["plan", recipe],
        "eval": ["eval", str(folder), "--parents", str(folder)],
    }
    done = CliRunner().invoke(main, lines[command])
    assert done.exit_code == 2 and "--allow-pickle" in done.output, done.output
    assert done.output.splitlines()[-1].startswith("Error: ") and not (tmp_path / "out").exists()
    if command != "eval":
        done = CliRunner().invoke(main, [*lines[command], "--allow-pickle"])
        assert done.exit_code == 0, done.output


def test_manifest_verify_and_reproduce(tmp_path: Path) -> None:
    pickled, _ = twins(tmp_path)
    out = tmp_path / "out"
    merge(pickled, Linear(), out=out, allow_pickle=True)
    record = json.loads((out / "merge_manifest.json").read_text())
    assert record["options"]["allow_pickle"] is True
    files = [file for given in record["inputs"] for file in given["files"]]
    assert [file["format"] for file in files] == ["torch.save"] * 2
    assert all(set(file["read"]) == set(state()) for file in files)
    assert verify(out, inputs=True).problems == ()
    assert reproduce(out).differences == ()
    model = open_checkpoint(pickled[0], allow_pickle=True)
    for name in ("rows", "turned"):
        (info,) = model.stored(model.tensors[name])
        with open(info.file, "r+b") as stream:
            stream.seek(info.offset)
            byte = stream.read(1)
            stream.seek(info.offset)
            stream.write(bytes([byte[0] ^ 1]))
        problems = verify(out, inputs=True).problems
        assert any(f"tensor '{name}' has changed" in line for line in problems), problems
    torch.save(state(7), pickled[1] / BIN)
    assert any("its header has changed" in line for line in verify(out, inputs=True).problems)


def test_outputs_of_safetensors_alone_say_so(tmp_path: Path) -> None:
    _, safe = twins(tmp_path)
    merge(safe, Linear(), out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "merge_manifest.json").read_text())
    assert record["options"]["allow_pickle"] is False
    assert "format" not in record["inputs"][0]["files"][0]


def test_a_changed_pickle_stops_the_merge(tmp_path: Path) -> None:
    pickled, _ = twins(tmp_path)
    recipe = parse_recipe({"merge_method": "linear", "models": [{"model": str(p)} for p in pickled]})
    file = pickled[1] / BIN

    def cut(_: object) -> None:
        os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(ChangedError, match="has changed"):
        run_recipe(recipe, tmp_path / "out", allow_pickle=True, planned=cut)
    assert not (tmp_path / "out").exists()


def test_a_stopped_merge_of_pickles_goes_on(tmp_path: Path) -> None:
    pickled, safe = twins(tmp_path)

    def stop(_: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    left = 6 + len(state())  # every tensor is counted once when the run begins
    with pytest.raises(KeyboardInterrupt):
        merge(pickled, Linear(), out=tmp_path / "out", threads=1, allow_pickle=True, progress=stop)
    result = merge(pickled, Linear(), out=tmp_path / "out", threads=1, allow_pickle=True)
    assert result.resumed
    merge(safe, Linear(), out=tmp_path / "twin")
    assert as_bytes(weights_of(tmp_path / "out")) == as_bytes(weights_of(tmp_path / "twin"))
    assert verify(tmp_path / "out", inputs=True).problems == ()


def test_weights_are_not_copied_into_memory(tmp_path: Path) -> None:
    """Of 400 MB, opening and reading by block touches little more than a block."""
    torch.save({f"{n}": torch.ones(5_000_000) for n in range(20)}, tmp_path / "m.pt")
    script = f"""
import resource, numpy as np
from pathlib import Path
import torch, torch._subclasses.fake_tensor
from merge_models.merge.checkpoint import open_checkpoint
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
torch.save({{"a": torch.ones(3)}}, {str(tmp_path / "warm.pt")!r})
open_checkpoint({str(tmp_path / "warm.pt")!r}, allow_pickle=True)
before = peak()
model = open_checkpoint({str(tmp_path / "m.pt")!r}, allow_pickle=True)
buffer = np.empty(1 << 20, np.uint8)
for info in model.tensors.values():
    for start in range(0, info.nbytes, 1 << 20):
        assert model.read(info, start, min(start + (1 << 20), info.nbytes), buffer)[3] == 63
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 40, done.stdout


class _Shell:
    """Pickles as a call of a function of the system."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _saved(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def _legacy(content: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _rezipped(
    change: Callable[[str, bytes], bytes] = lambda name, data: data,
    method: int = zipfile.ZIP_STORED,
    more: Mapping[str, bytes] | None = None,
    drop: str = "",
    comment: bytes = b"",
) -> bytes:
    """An archive of torch.save, written again by zipfile with something changed."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(_saved({"x": torch.ones(50)}))) as old,
        zipfile.ZipFile(stream, "w") as new,
    ):
        new.comment = comment
        for name in old.namelist():
            if not drop or drop not in name:
                new.writestr(name, change(name, old.read(name)), method)
        for name, data in (more or {}).items():
            new.writestr(name, data)
    return stream.getvalue()


def _twice(data: bytes) -> bytes:
    """Two entries of the directory lead to the same bytes."""
    at = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", at + 4)
    return data[: second + 42] + data[at + 42 : at + 46] + data[second + 46 :]


def _grown(data: bytes, more: int) -> bytes:
    """The directory says that the first entry is larger than it is."""
    at = data.index(b"PK\x01\x02") + 20
    (size,) = struct.unpack_from("<L", data, at)
    return data[:at] + struct.pack("<2L", size + more, size + more) + data[at + 8 :]


def _pickled(protocol_2: bytes) -> bytes:
    return _rezipped(lambda name, data: protocol_2 if name.endswith("data.pkl") else data)


GOOD = _saved({"x": torch.ones(50)})
BAD_FILES: dict[str, tuple[Callable[[], bytes], list[str]]] = {
    "os.system": (
        lambda: _saved({"x": _Shell(os.system, "touch owned")}),
        ["posix.system", "nothing", "run"],
    ),
    "eval": (lambda: _saved({"x": _Shell(eval, "open('owned', 'w')")}), ["eval", "refused"]),
    "exec beside weights": (
        lambda: _saved({"x": torch.ones(2), "y": _Shell(exec, "1")}),
        ["exec", "refused"],
    ),
    "a whole module": (lambda: _saved(torch.nn.Linear(2, 2)), ["refused"]),
    "plain pickle": (lambda: pickle.dumps({"x": 1}), ["before PyTorch 1.6", "convert"]),
    "legacy format": (lambda: _legacy({"x": torch.ones(3)}), ["before PyTorch 1.6", "convert"]),
    "empty": (lambda: b"", ["0 bytes"]),
    "other bytes": (lambda: b"x" * 400, ["not a safetensors file"]),
    "zip of other things": (lambda: _rezipped(drop="data.pkl"), ["without data.pkl"]),
    "cut": (lambda: GOOD[:-30], ["not a whole zip"]),
    "cut in half": (lambda: GOOD[: len(GOOD) // 2], ["not a whole zip"]),
    "longer": (lambda: GOOD + b"\0", ["not a whole zip"]),
    "comment": (lambda: _rezipped(comment=b"hello"), ["not a whole zip"]),
    "compressed": (lambda: _rezipped(method=zipfile.ZIP_DEFLATED), ["compressed"]),
    "bomb": (
        lambda: _rezipped(lambda n, d: b"\0" * (50 << 20) if n.endswith("/0") else d, zipfile.ZIP_DEFLATED),
        ["compressed"],
    ),
    "two entries in one place": (lambda: _twice(GOOD), ["two descriptions"]),
    "overlapping": (lambda: _grown(GOOD, 99), ["overlaps"]),
    "beyond the end": (lambda: _grown(GOOD, 1 << 30), ["outside the file"]),
    "the same name twice": (lambda: _rezipped(more={"ARCHIVE/DATA.PKL": b"x"}), ["two zip entries"]),
    "two folders": (lambda: _rezipped(more={"other/data.pkl": b"x"}), ["more than one folder"]),
    "big-endian": (lambda: _rezipped(lambda n, d: b"big" if n.endswith("byteorder") else d), ["big-endian"]),
    "large pickle": (
        lambda: _rezipped(lambda n, d: b"]" * (MAX_PICKLE + 1) if n.endswith("data.pkl") else d),
        ["data.pkl", str(MAX_PICKLE)],
    ),
    "pickle is cut": (lambda: _rezipped(lambda n, d: d[:60] if n.endswith("data.pkl") else d), ["refused"]),
    "pickle is nonsense": (lambda: _pickled(b"\x80\x02hello"), ["refused"]),
    "deep pickle": (lambda: _pickled(b"\x80\x02" + b"(" * 100_000), ["refused"]),
    "huge bytearray": (
        lambda: _pickled(
            b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + struct.pack("<q", 1 << 60) + b"\x85R."
        ),
        ["refused"],
    ),
    "values are missing": (lambda: _rezipped(drop="data/0"), ["refused"]),
    "values are short": (
        lambda: _rezipped(lambda n, d: d[:-1] if n.endswith("data/0") else d),
        ["'x'", "outside its zip entry"],
    ),
    "list": (lambda: _saved([torch.ones(2)]), ["holds a list"]),
    "number": (lambda: _saved(3), ["holds a int"]),
    "numbers in it": (lambda: _saved({"x": torch.ones(2), "epoch": 3}), ["'epoch'", "int"]),
    "nested deeper": (lambda: _saved({"a": {"b": torch.ones(2)}}), ["'a'", "dict"]),
    "number as a name": (lambda: _saved({3: torch.ones(2)}), ["'3'", "name"]),
    "half a letter": (lambda: _saved({"\ud800": torch.ones(2)}), []),
    "long name": (lambda: _saved({"x" * 2000: torch.ones(2)}), ["not the name"]),
    "complex": (lambda: _saved({"x": torch.ones(2, dtype=torch.complex64)}), ["complex64", "not supported"]),
    "sparse": (lambda: _saved({"x": torch.eye(3).to_sparse()}), []),
    "expanded": (lambda: _saved({"x": torch.ones(1).expand(9, 9)}), ["repeats its elements"]),
    "scattered": (lambda: _saved({"x": torch.zeros(4000, 5000)[:, 3]}), ["scattered"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_give_one_clean_error(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = BAD_FILES[case]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.bin").write_bytes(make())
    with pytest.raises(MergeError) as failure:
        open_checkpoint("m.bin", allow_pickle=True)
    text = str(failure.value)
    assert "m.bin" in text and "\n" not in text and len(text) < 400, text
    for word in words:
        assert word in text, text
    assert not (tmp_path / "owned").exists()
    assert failure.value.__suppress_context__ or failure.value.__context__ is None


def test_a_tensor_that_claims_more_than_its_storage(tmp_path: Path) -> None:
    """The pickle says 50 elements of a storage of 50; a stranger says 90."""
    data = _rezipped(lambda n, d: d.replace(b"K2\x85", b"KZ\x85") if n.endswith("data.pkl") else d)
    (tmp_path / "m.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match="outside its zip entry|refused"):
        open_checkpoint(tmp_path / "m.bin", allow_pickle=True)


def test_mutated_archives_never_escape(tmp_path: Path) -> None:
    """Each of 400 files with some bytes changed opens and reads, or gives one clean error."""
    import random

    draw, file, refused = random.Random(7), tmp_path / "m.bin", 0
    good = _saved({"x": torch.ones(50), "y": torch.ones(5, 4).t()})
    for _ in range(400):
        data = bytearray(good)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        file.write_bytes(data)
        try:
            read_all(open_checkpoint(file, allow_pickle=True))
        except MergeError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 50 < refused < 400


def test_adapters_stay_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", state())
    adapter = folder_of(tmp_path / "a", {"x": torch.ones(2)}, "adapter_model.bin")
    write_json(adapter / "adapter_config.json", {"peft_type": "LORA"})
    recipe = parse_recipe({"merge_method": "passthrough", "models": [{"model": f"{folder}+{adapter}"}]})
    with pytest.raises(CheckpointError, match="pickled"):
        prepare(recipe, allow_pickle=True)


def test_memory_is_accounted_for_what_is_laid_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "m", state())
    model = open_checkpoint(folder, allow_pickle=True)
    assert isinstance(model, PickledCheckpoint)
    turned = model.tensors["turned"].nbytes
    assert set(model.views) == {"columns", "turned", "permuted", "brain"}
    assert model.kept_bytes >= 3 * turned + turned
