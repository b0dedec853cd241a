"""Files that are damaged, another model's or hostile: one sentence, nothing run, and little time and memory spent."""

import json
import pickle
import random
import tracemalloc
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from kv_core.files.checkpoints import CheckpointError, open_checkpoint
from kv_core.files.conversion import convert
from tests.support.small_files import model, refusal


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


def rezipped(mode):
    """A published file whose entries were unpacked and zipped again."""

    def write(path, published):
        with zipfile.ZipFile(published / "movq.pt") as whole, zipfile.ZipFile(path, "w", mode) as archive:
            for name in whole.namelist():
                archive.writestr(name, whole.read(name))

    return write


def pickled(content, size=0, mode=zipfile.ZIP_STORED):
    """A PyTorch file with this pickle, filled with empty instructions to `size` bytes."""

    def write(path, published):
        with zipfile.ZipFile(path, "w", mode) as archive, archive.open("a/data.pkl", "w") as entry:
            entry.write(b"\x80\x02")
            for _ in range(size // 10**6):
                entry.write(b"N" * 10**6)
            entry.write(content + b".")

    return write


def holds_itself(path, published):
    content = {"a": torch.ones(2)}
    content["itself"] = content
    torch.save(content, path)


def nested(levels, keys):
    """Dictionaries in dictionaries, of which each has the next one under several names."""
    content = {"a": torch.ones(2)}
    for _ in range(levels):
        content = {str(key): content for key in range(keys)}
    return saved(content)


def called(function, arguments):
    return pickled(b"c" + function.replace(b" ", b"\n") + b"\n" + arguments + b"R")


def safetensors(header):
    def write(path, published):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)

    return write


def empty(names):
    return safetensors({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})


DEEP = "[" * 100_000 + "]" * 100_000
LONG = "9" * 5000


def stating(config):
    return safetensors({"__metadata__": {"kandinsky_video": f'{{"config": {config}}}'}})


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
    "compressed": (rezipped(zipfile.ZIP_DEFLATED), "compressed by another program"),
    "compressed bomb": (pickled(b"}", 300_000_000, zipfile.ZIP_DEFLATED), "compressed by another program"),
    "long pickle": (pickled(b"}", 30_000_000), "describes its contents in over 1 MB"),
    "no end": (pickled(b"}q"), "damaged"),
    "holds itself": (holds_itself, "not recognised: its 1 tensors"),
    "nested": (nested(9, 1), "nested more than 8 deep"),
    "nested deep": (pickled(b"}X\x01\x00\x00\x00a" * 100_000 + b"N" + b"s" * 100_000), "nested more than 8 deep"),
    "one dictionary under many names": (nested(7, 50), "not recognised: its 1 tensors"),
    # x = (x, x) 60 times over: the hash of such a key visits 2 ** 60 tuples.
    "hashed for ever": (pickled(b"})" + b"q\x00h\x00\x86" * 60 + b"Ns"), "not recognised"),
    # The same as a storage's name: its text has 2 ** 60 characters.
    "said for ever": (
        pickled(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n)" + b"q\x00h\x00\x86" * 60 + b"tQ"),
        "more than",
    ),
    "long number as a name": (saved({10**5000: torch.ones(2)}), "more than tensors"),
    "bytes": (called(b"builtins bytearray", b"J\xff\xff\xff\x7f\x85"), "more than tensors"),
    "copies": (called(b"collections OrderedDict", b"}\x85"), "more than tensors"),
    "sparse": (saved({"a": torch.ones(2, 2).to_sparse()}), "sparse, quantized or without values"),
    "meta": (saved({"a": torch.ones(2, device="meta")}), "sparse, quantized or without values"),
    "expanded": (saved({"a": torch.ones(1).expand(10**12)}), "more numbers than it holds"),
    "many axes": (saved({"a": torch.ones([1] * 40)}), "more than tensors"),
    "long name": (saved({"a" * 300: torch.ones(1)}), "names that no part"),
    "deep metadata": (stating(DEEP), "unreadable 'kandinsky_video' metadata"),
    "long number": (stating(f'{{"head_dim": {LONG}}}'), "unreadable 'kandinsky_video' metadata"),
    "large number": (stating(f'{{"head_dim": {LONG[:4000]}}}'), "states head_dim 999"),
    "long text": (stating(f'{{"head_dim": "{LONG}"}}'), "states head_dim '999"),
    "true": (stating('{"head_dim": true}'), "states head_dim True"),
    "long header": (safetensors({"__metadata__": {"a": "x" * 9_000_000}}), "damaged"),
    "many tensors": (empty(map(str, range(60_000))), "not recognised: its 60000 tensors"),
    "long name in safetensors": (empty(["encoder.block.0." * 100_000]), "not recognised"),
    "many layers": (
        empty(f"encoder.block.{i}.layer.0.SelfAttention.q.weight" for i in range(9_000)),
        "its sizes are missing",
    ),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_files_get_one_sentence_run_nothing_and_cost_little(published, tmp_path, what):
    write, expected = BAD_FILES[what]
    write(tmp_path / "t2v.pt", published)
    tracemalloc.start()
    try:
        message = refusal(open_checkpoint, tmp_path / "t2v.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert expected in message and "t2v.pt" in message
    assert not (tmp_path / "ran").exists()
    assert peak < 200e6


def test_zipped_again_without_compression(published, tmp_path):
    rezipped(zipfile.ZIP_STORED)(tmp_path / "movq.pt", published)
    expected = open_checkpoint(published / "movq.pt").tensors
    found = open_checkpoint(tmp_path / "movq.pt").tensors
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_model_of_many_blocks_is_not_built(tmp_path):
    shapes = {name: tensor for name, tensor in model("text_encoder").state_dict().items()}
    more = {f"encoder.block.{i}.layer.0.layer_norm.weight": torch.ones(64) for i in range(2, 5000)}
    save_file(shapes | more, tmp_path / "t5.safetensors")
    assert "has 5000 layers or blocks; expected 64 at most" in refusal(open_checkpoint, tmp_path / "t5.safetensors")


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
