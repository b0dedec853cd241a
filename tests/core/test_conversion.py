"""Conversion to safetensors: exact, streamed, and never half written; and its command line."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kv_core.files import conversion
from kv_core.files.checkpoints import open_checkpoint
from kv_core.files.conversion import DTYPES, convert, write_safetensors
from kv_core.files.detection import METADATA_KEY
from kv_core.networks.text_encoder import load_tokenizer
from tests.support.small_files import FILE_NAMES, model, names_in, refusal
from tools import weights

ROOT = Path(__file__).parents[2]


def anonymous_memory():
    """MiB of this process that no file backs (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


@pytest.mark.parametrize("part", FILE_NAMES)
@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_conversion(published, tmp_path, part, dtype):
    folder = part == "text_encoder"
    target = tmp_path / (part if folder else f"{part}.safetensors")
    progress = []
    converted = convert(published / FILE_NAMES[part], target, DTYPES.get(dtype), lambda *bytes: progress.append(bytes))
    file = target / "model.safetensors" if folder else target
    source = open_checkpoint(published / FILE_NAMES[part])
    assert names_in(tmp_path) == [target.name]
    assert (converted.part, converted.config) == (source.part, source.config)
    stored = load_file(file)
    size = sum(tensor.nbytes for tensor in stored.values())
    assert progress == sorted(progress) and len(progress) == len(stored) and progress[-1] == (size, size)
    for name, tensor in source.tensors.items():
        kept = dtype is None or (
            dtype == "float8_e4m3fn"
            and (tensor.dim() < 2 or "embeddings" in name or "shared" in name or "_bias" in name)
        )
        expected = tensor if kept else tensor.to(DTYPES[dtype])
        assert stored[name].dtype == expected.dtype and torch.equal(stored[name].float(), expected.float()), name
    if source.null_embedding is not None:
        assert converted.null_embedding.dim() == 1 and "null_embedding" in stored
        assert torch.allclose(converted.null_embedding.float(), source.null_embedding, atol=0.01)
    stated = json.loads(converted.metadata[METADATA_KEY])
    assert stated["part"] == part and stated["config"] == json.loads(json.dumps(source.config))
    assert_layout(file)
    again = tmp_path / ("again" if folder else "again.safetensors")
    convert(target, again)
    assert (again / "model.safetensors" if folder else again).read_bytes() == file.read_bytes()


def assert_layout(file):
    """Header of a length divisible by 8; tensors in the header's order, aligned and without holes."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    assert length % 8 == 0
    end = 0
    for entry in header.values():
        start, stop = entry["data_offsets"]
        item = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1}[entry["dtype"]]
        assert start == end and start % item == 0
        end = stop
    assert end == len(data) - 8 - length


def test_converted_folder_has_its_tokenizer(published, tmp_path):
    convert(published / "flan-ul2", tmp_path / "ul2", torch.float16)
    assert names_in(tmp_path / "ul2") == [
        "config.json",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert load_tokenizer(tmp_path / "ul2")("a red fox").attention_mask.sum() == 4


def test_files_are_mapped_and_streamed(tmp_path):
    if not Path("/proc/self/status").exists():
        pytest.skip("measures memory as Linux reports it")
    source = tmp_path / "projections.safetensors"
    layer = {"0.weight": (1024, 2048), "1.weight": (1024,), "1.bias": (1024,)}
    save_file(
        {f"projection_{i}.{k}": torch.ones(s) for i in range(12) for k, s in layer.items()}
        | {f"projection_base.{k}": torch.ones(s) for k, s in layer.items()},
        source,
    )
    torch.save(load_file(source), tmp_path / "projections.pt")  # 104 MiB each
    for file in (source, tmp_path / "projections.pt"):
        target, memory = tmp_path / f"half of {file.name}.safetensors", [anonymous_memory()]
        assert sum(tensor.sum() for tensor in open_checkpoint(file).tensors.values()) > 0
        convert(file, target, torch.float16, lambda *_, memory=memory: memory.append(anonymous_memory()))
        assert max(memory) - memory[0] < 40
        assert target.stat().st_size < source.stat().st_size * 0.51


def test_values_that_do_not_fit(tmp_path):
    tensors = model("projections").state_dict()
    tensors["projection_base.0.weight"][0, 0] = 70000.0
    save_file(tensors, tmp_path / "p.safetensors")
    for dtype in (torch.float16, torch.float8_e4m3fn):
        assert "cannot represent" in refusal(convert, tmp_path / "p.safetensors", tmp_path / "q.safetensors", dtype)
    assert names_in(tmp_path) == ["p.safetensors"]
    convert(tmp_path / "p.safetensors", tmp_path / "q.safetensors", torch.bfloat16)
    tensors["projection_base.0.weight"][0, 0] = torch.nan
    save_file(tensors, tmp_path / "p.safetensors")
    assert "cannot represent" in refusal(convert, tmp_path / "p.safetensors", tmp_path / "r.safetensors", torch.float16)


def test_back_from_eight_bit(published, tmp_path):
    convert(published / "movq.pt", tmp_path / "8.safetensors", torch.float8_e4m3fn)
    convert(tmp_path / "8.safetensors", tmp_path / "32.safetensors", torch.float32)
    tensors = open_checkpoint(tmp_path / "32.safetensors").tensors
    expected = open_checkpoint(published / "movq.pt").tensors
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(torch.allclose(tensors[name], expected[name], rtol=0.07, atol=0.002) for name in expected)


@pytest.mark.thorough
@pytest.mark.parametrize("source, name", [("t2v.pt", "out.safetensors"), ("flan-ul2", "out")])
def test_killed_conversion_leaves_only_a_partial_name(published, tmp_path, source, name):
    program = (
        "import sys, time; from kv_core.files.conversion import convert\n"
        "convert(sys.argv[1], sys.argv[2], None, lambda *bytes: (print(*bytes, flush=True), time.sleep(600)))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, published / source, tmp_path / name], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert process.stdout.readline().strip()
    process.kill()
    process.communicate()
    assert names_in(tmp_path) == [f"{name}.partial"]
    convert(published / source, tmp_path / name)
    assert names_in(tmp_path) == [name]


@pytest.mark.parametrize("source, name", [("t2v.pt", "out.safetensors"), ("flan-ul2", "out")])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EIO, "Input/output error")])
def test_stopped_conversion_leaves_nothing(published, tmp_path, source, name, failure):
    def stop(written, total):
        assert names_in(tmp_path) == [f"{name}.partial"]
        raise failure

    with pytest.raises(type(failure)):
        convert(published / source, tmp_path / name, None, stop)
    assert names_in(tmp_path) == []


class FullDisk:
    """A file on a disk with room for `room` bytes."""

    def __init__(self, file, room):
        self.file, self.room = file, room

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)


def test_disk_that_fills_up(published, tmp_path, monkeypatch, capsys):
    opened = Path.open

    def open_on_full_disk(path, mode="r", *args, **kwargs):
        file = opened(path, mode, *args, **kwargs)
        return FullDisk(file, 100_000) if mode == "wb" else file

    monkeypatch.setattr(Path, "open", open_on_full_disk)
    assert weights.main(["convert", str(published / "movq.pt"), str(tmp_path / "movq.safetensors")]) == 1
    assert names_in(tmp_path) == []
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "could not be written: No space left on device" in message


@pytest.mark.parametrize("source, name", [("video_movq.pt", "out.safetensors"), ("flan-ul2", "out")])
def test_too_little_space_is_said_before_writing(published, tmp_path, monkeypatch, source, name):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: namedtuple("usage", "total used free")(9, 8, 1))
    monkeypatch.setattr(conversion, "_bytes", None)  # nothing may be written
    message = refusal(convert, published / source, tmp_path / name)
    assert "GiB are free" in message and str(tmp_path) in message
    assert names_in(tmp_path) == []


def test_targets_that_cannot_be(published, tmp_path):
    source = published / "movq.pt"
    (tmp_path / "there.safetensors").write_text("keep me")
    assert "already exists" in refusal(convert, source, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "keep me"
    assert "must end in .safetensors" in refusal(convert, source, tmp_path / "movq.pt")
    assert "is not a folder" in refusal(convert, source, tmp_path / "nowhere" / "movq.safetensors")
    assert names_in(tmp_path) == ["there.safetensors"]


def test_scalars_and_strides(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(6.0).reshape(2, 3).T, "c": torch.tensor(3.5)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"k": "é"})
    stored = load_file(tmp_path / "x.safetensors")
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "é"}
    assert_layout(tmp_path / "x.safetensors")


def test_command_line(published, tmp_path, capsys):
    target = tmp_path / "t2v.safetensors"
    assert weights.main(["convert", str(published / "t2v.pt"), str(target), "--dtype", "float16"]) == 0
    assert "t2v.safetensors holds the keyframe U-Net.\n" in capsys.readouterr().out
    assert weights.main(["inspect", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "float16" in shown and "context_dim: 32" in shown and "null embedding" in shown
    assert weights.main(["inspect", str(tmp_path / "nothing.pt")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_interrupted_command_line(published, tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_bytes", interrupt)
    assert weights.main(["convert", str(published / "movq.pt"), str(tmp_path / "m.safetensors")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing was left behind."
    assert names_in(tmp_path) == []


def test_help_of_the_command(capsys):
    run = subprocess.run([sys.executable, "-m", "tools.weights", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and "inspect" in run.stdout and not run.stderr
    with pytest.raises(SystemExit):
        weights.main(["convert", "--help"])
    assert "float8_e4m3fn" in capsys.readouterr().out
