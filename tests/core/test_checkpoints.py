"""Opening files without copying or running anything in them, and converting them so that none is ever half written."""

import errno
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kv_core.files import checkpoints, conversion
from kv_core.files.checkpoints import CheckpointError, convert, open_checkpoint
from kv_core.files.conversion import DTYPES, write_safetensors
from kv_core.files.detection import METADATA_KEY
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import Projection, TextEncoder, load_tokenizer
from tests.support.recipe import fill
from training import tiny

ROOT = Path(__file__).parents[2]
# Small, but with the published head_dim and groups, which a .pt file has no way to state.
UNET = {
    "model_channels": 64,
    "init_channels": 64,
    "time_embed_dim": 64,
    "context_dim": 32,
    "dim_mult": (1,),
    "num_blocks": (1,),
    "add_cross_attention": (True,),
    "add_self_attention": (True,),
}
MOVQ = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1}
ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 48, "num_heads": 2, "num_layers": 2, "vocab_size": 100}
PUBLISHED = {
    "keyframe_unet": "t2v.pt",
    "interpolation_unet": "interpolation.pt",
    "image_movq": "movq.pt",
    "video_movq": "video_movq.pt",
    "projections": "t5_projections.pt",
    "text_encoder": "flan-ul2",
}


def model(part):
    build = {
        "keyframe_unet": lambda **o: KeyframeUNet(**UNET, **o),
        "interpolation_unet": lambda **o: InterpolationUNet(**UNET, **o),
        "image_movq": lambda **o: MoVQ(**MOVQ, **o),
        "video_movq": lambda **o: MoVQ(**MOVQ, temporal=True, flicker_augmentation=True, **o),
        "text_encoder": lambda **o: TextEncoder(**ENCODER, **o),
        "projections": lambda **o: torch.nn.ModuleDict(
            {name: Projection(64, 32, **o) for name in ("projection_base", "projection_interpolation")}
        ),
    }[part]
    return fill(build(operations=TorchOperations), part)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Small models in the layouts of the published files."""
    folder = tmp_path_factory.mktemp("published")
    for part in ("keyframe_unet", "interpolation_unet"):
        content = {"unet": model(part).state_dict(), "null_embedding": torch.linspace(-1, 1, 32)[None, None]}
        torch.save(content, folder / PUBLISHED[part])
    for part in ("image_movq", "video_movq"):
        torch.save(model(part).state_dict(), folder / PUBLISHED[part])
    projections = model("projections")
    torch.save({name: layer.state_dict() for name, layer in projections.items()}, folder / PUBLISHED["projections"])
    write_shards(folder / "flan-ul2", model("text_encoder").state_dict())
    for path, text in tiny.text_files(Path()).items():
        (folder / "flan-ul2" / path.name).write_text(text)
    return folder


def write_shards(folder, tensors):
    folder.mkdir()
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves):
        save_file({name: tensors[name].contiguous() for name in half}, folder / file)
    weight_map = {name: file for file, half in zip(files, halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(action, *args, **kwargs):
    """The one sentence an action is refused with."""
    with pytest.raises(CheckpointError) as error:
        action(*args, **kwargs)
    message = str(error.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    assert len(message.replace(str(Path(args[0]).parent), "")) < 300
    return message


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def anonymous_memory():
    """MiB of this process that no file backs (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


@pytest.mark.parametrize("part", PUBLISHED)
def test_published_layouts(published, part):
    checkpoint = open_checkpoint(published / PUBLISHED[part], expect=part)
    expected = model(part).state_dict()
    tensors = checkpoint.state_dict()
    assert checkpoint.part == part and tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    if part.endswith("_unet"):
        assert torch.equal(checkpoint.null_embedding, torch.linspace(-1, 1, 32))
    else:
        assert checkpoint.null_embedding is None


def test_trainable_parameters(tmp_path):
    trainable = {name: torch.nn.Parameter(tensor) for name, tensor in model("projections").state_dict().items()}
    torch.save(trainable, tmp_path / "p.pt")
    tensors = open_checkpoint(tmp_path / "p.pt").state_dict()
    assert not any(tensor.requires_grad or isinstance(tensor, torch.nn.Parameter) for tensor in tensors.values())


@pytest.mark.parametrize("shape", [(32,), (1, 32), (1, 1, 32)])
def test_shapes_of_null_embeddings(tmp_path, shape):
    content = {"unet": model("keyframe_unet").state_dict(), "null_embedding": torch.arange(32.0).reshape(shape)}
    torch.save(content, tmp_path / "t2v.pt")
    assert torch.equal(open_checkpoint(tmp_path / "t2v.pt").null_embedding, torch.arange(32.0))


def test_the_loader_of_another_part_is_named(published):
    message = refusal(open_checkpoint, published / "video_movq.pt", expect="image_movq")
    assert "the temporal MoVQ instead of the image MoVQ" in message and "Load Temporal MoVQ" in message
    message = refusal(open_checkpoint, published / "movq.pt", expect=("keyframe_unet", "interpolation_unet"))
    assert "the keyframe U-Net or the interpolation U-Net" in message and "Load MoVQ" in message


@pytest.mark.parametrize("part", PUBLISHED)
@pytest.mark.parametrize("dtype", [None, *DTYPES])
def test_conversion(published, tmp_path, part, dtype):
    folder = part == "text_encoder"
    target = tmp_path / (part if folder else f"{part}.safetensors")
    progress = []
    converted = convert(published / PUBLISHED[part], target, DTYPES.get(dtype), lambda *bytes: progress.append(bytes))
    file = target / "model.safetensors" if folder else target
    source = open_checkpoint(published / PUBLISHED[part])
    assert names_in(tmp_path) == [target.name]
    assert (converted.part, converted.config) == (source.part, source.config)
    stored = load_file(file)
    size = sum(tensor.nbytes for tensor in stored.values())
    assert progress == sorted(progress) and len(progress) == len(stored) and progress[-1] == (size, size)
    for name, tensor in source.state_dict().items():
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
        assert sum(tensor.sum() for tensor in open_checkpoint(file).state_dict().values()) > 0
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
    tensors = open_checkpoint(tmp_path / "32.safetensors").state_dict()
    expected = open_checkpoint(published / "movq.pt").state_dict()
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    assert all(torch.allclose(tensors[name], expected[name], rtol=0.07, atol=0.002) for name in expected)


@pytest.mark.parametrize("source, name", [("t2v.pt", "out.safetensors"), ("flan-ul2", "out")])
def test_killed_conversion_leaves_only_a_partial_name(published, tmp_path, source, name):
    program = (
        "import sys, time; from kv_core.files.checkpoints import convert\n"
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
    assert checkpoints.main(["convert", str(published / "movq.pt"), str(tmp_path / "movq.safetensors")]) == 1
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
    assert "exists already" in refusal(convert, source, tmp_path / "there.safetensors")
    assert (tmp_path / "there.safetensors").read_text() == "keep me"
    assert "must end in .safetensors" in refusal(convert, source, tmp_path / "movq.pt")
    assert "is not a folder" in refusal(convert, source, tmp_path / "nowhere" / "movq.safetensors")
    assert names_in(tmp_path) == ["there.safetensors"]


class Code:
    """An object whose pickle creates a file when it is loaded."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def code_in_torch_file(path, published):
    torch.save({"unet": {"in_layer.weight": torch.ones(2)}, "x": Code(str(path.with_name("ran")))}, path)


def code_in_bare_pickle(path, published):
    path.write_bytes(pickle.dumps(Code(str(path.with_name("ran")))))


def code_in_old_torch_file(path, published):
    torch.save({"x": Code(str(path.with_name("ran")))}, path, _use_new_zipfile_serialization=False)


def cut(name, keep):
    def write(path, published):
        data = (published / name).read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])

    return write


def holding(data):
    return lambda path, published: path.write_bytes(data)


def saved(content):
    return lambda path, published: torch.save(content, path)


def zip_of_text(path, published):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")


def cut_safetensors(path, published):
    convert(published / "movq.pt", path.with_name("whole.safetensors"))
    path.write_bytes(path.with_name("whole.safetensors").read_bytes()[:-1])


def integers(path, published):
    tensors = model("image_movq").state_dict()
    save_file(tensors | {"encoder.conv_in.weight": tensors["encoder.conv_in.weight"].to(torch.int8)}, path)


BAD_FILES = {
    "missing": (lambda path, published: None, "does not exist"),
    "empty": (holding(b""), "is empty"),
    "text": (holding(b"hello, this is no checkpoint at all"), "neither a safetensors nor a PyTorch file"),
    "gguf": (holding(b"GGUF\x03\x00\x00\x00" + bytes(100)), "neither a safetensors nor a PyTorch file"),
    "web page": (holding(b"<!DOCTYPE html><html>"), "web page"),
    "LFS pointer": (holding(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"), "Git LFS pointer"),
    "cut .pt": (cut("t2v.pt", 0.7), "cut short"),
    "start of a .pt": (cut("movq.pt", 0.001), "cut short"),
    "cut safetensors": (cut_safetensors, "cut short safetensors"),
    "wrong header": (holding((10).to_bytes(8, "little") + b'{"a": 1}..'), "damaged"),
    "zip": (zip_of_text, "a zip archive, but not PyTorch's"),
    "code": (code_in_torch_file, "more than tensors"),
    "bare pickle": (code_in_bare_pickle, "pickle"),
    "old format": (code_in_old_torch_file, "pickle"),
    "module": (saved(torch.nn.Linear(2, 2)), "more than tensors"),
    "one tensor": (saved(torch.ones(3)), "not recognised"),
    "list": (saved([torch.ones(3)]), "not recognised"),
    "optimizer": (saved({"step": 3, "state": {0: {"exp_avg": torch.ones(2)}}}), "not recognised"),
    "Stable Diffusion": (
        saved({"state_dict": {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1)}}),
        "looks like a Stable Diffusion checkpoint",
    ),
    "LoRA": (saved({"unet.in_layer.lora_up.weight": torch.ones(1)}), "looks like a LoRA"),
    "null embedding": (
        saved({"unet": model("keyframe_unet").state_dict(), "null_embedding": torch.ones(2, 32)}),
        "null embedding of shape (2, 32)",
    ),
    "half a state dict": (saved(dict(list(model("image_movq").state_dict().items())[::2])), "MoVQ"),
    "unknown tensor": (
        saved(model("image_movq").state_dict() | {"quantize.embedding.weight": torch.ones(8, 4)}),
        "1 unknown",
    ),
    "integers": (integers, "quantized"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_get_one_sentence_and_never_run(published, tmp_path, what):
    write, expected = BAD_FILES[what]
    write(tmp_path / "t2v.pt", published)
    message = refusal(open_checkpoint, tmp_path / "t2v.pt")
    assert expected in message and "t2v.pt" in message
    assert not (tmp_path / "ran").exists()


def test_the_malicious_files_are_malicious(tmp_path):
    code_in_bare_pickle(tmp_path / "t2v.pt", None)
    pickle.loads((tmp_path / "t2v.pt").read_bytes()).close()
    assert (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere_gets_one_sentence(published, tmp_path):
    dice = random.Random(0)
    convert(published / "movq.pt", tmp_path / "movq.safetensors")
    for source in (published / "movq.pt", tmp_path / "movq.safetensors"):
        whole = source.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            # The front holds the pickle or the header, the end a zip's contents; between, damage is another number.
            start = dice.randrange(-20_000, 20_000) % (len(whole) - 8)
            data[start : start + 8] = dice.randbytes(8)
            (tmp_path / "bad.pt").write_bytes(data)
            try:
                open_checkpoint(tmp_path / "bad.pt")
            except CheckpointError as error:
                assert "\n" not in str(error)
            (tmp_path / "bad.pt").write_bytes(whole[: dice.randrange(len(whole))])
            refusal(open_checkpoint, tmp_path / "bad.pt")


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published / "flan-ul2", tmp_path / "ul2"))


def test_bad_folders(folder):
    index, shard = folder / "model.safetensors.index.json", "model-00002-of-00002.safetensors"
    (folder / shard).rename(folder / "away")
    assert f"lacks 1 of its 2 weight files, {shard} first" in refusal(open_checkpoint, folder)
    for text in ("[]", "{", "{}"):
        index.write_text(text)
        assert "index.json" in refusal(open_checkpoint, folder)
    index.unlink()
    assert "a folder without weights" in refusal(open_checkpoint, folder)


def test_index_reaches_no_other_folder(folder):
    secret = folder.parent / "model-00002-of-00002.safetensors"
    (folder / secret.name).rename(secret)
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(secret.name, f"../{secret.name}"))
    assert "lacks 1 of its 2" in refusal(open_checkpoint, folder)


def test_config_of_a_folder(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"relative_attention_max_distance": 64}))
    assert open_checkpoint(folder).config["relative_attention_max_distance"] == 64
    (folder / "config.json").write_text(json.dumps(config | {"feed_forward_proj": "gated-gelu"}))
    assert "gated-gelu" in refusal(open_checkpoint, folder)
    (folder / "config.json").unlink()
    assert open_checkpoint(folder).config["num_heads"] == ENCODER["num_heads"]


def test_single_file_folders(published, tmp_path):
    tensors = model("text_encoder").state_dict()
    for name, save in (("model.safetensors", save_file), ("pytorch_model.bin", torch.save)):
        (tmp_path / name).mkdir()
        save(tensors, tmp_path / name / name)
        assert open_checkpoint(tmp_path / name).config == open_checkpoint(published / "flan-ul2").config


def test_command_line(published, tmp_path, capsys):
    target = tmp_path / "t2v.safetensors"
    assert checkpoints.main(["convert", str(published / "t2v.pt"), str(target), "--dtype", "float16"]) == 0
    assert "holds the keyframe U-Net; the node Load U-Net takes it" in capsys.readouterr().out
    assert checkpoints.main(["inspect", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "float16" in shown and "context_dim: 32" in shown and "null embedding" in shown
    assert checkpoints.main(["inspect", str(tmp_path / "nothing.pt")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_interrupted_command_line(published, tmp_path, capsys, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, "_bytes", interrupt)
    assert checkpoints.main(["convert", str(published / "movq.pt"), str(tmp_path / "m.safetensors")]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "Stopped; nothing was left behind."
    assert names_in(tmp_path) == []


def test_help_of_the_command(capsys):
    run = subprocess.run(
        [sys.executable, "-m", "kv_core.files.checkpoints", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0 and "inspect" in run.stdout and not run.stderr
    with pytest.raises(SystemExit):
        checkpoints.main(["convert", "--help"])
    assert "float8_e4m3fn" in capsys.readouterr().out


def test_scalars_and_strides(tmp_path):
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.arange(6.0).reshape(2, 3).T, "c": torch.tensor(3.5)}
    write_safetensors(tmp_path / "x.safetensors", tensors, {"k": "é"})
    stored = load_file(tmp_path / "x.safetensors")
    assert stored.keys() == tensors.keys() and all(torch.equal(stored[name], tensors[name]) for name in tensors)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"k": "é"}
    assert_layout(tmp_path / "x.safetensors")
