"""Opening the model's files: every published layout, mapped from the disk; wrong parts and incomplete folders."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kv_core.files.checkpoints import open_checkpoint
from kv_core.files.torch_files import read_torch
from tests.support.small_files import ENCODER, FILE_NAMES, model, refusal


@pytest.mark.parametrize("part", FILE_NAMES)
def test_published_layouts(published, part):
    checkpoint = open_checkpoint(published / FILE_NAMES[part], expect=part)
    expected = model(part).state_dict()
    tensors = checkpoint.tensors
    assert checkpoint.part == part and tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    if part.endswith("_unet"):
        assert torch.equal(checkpoint.null_embedding, torch.linspace(-1, 1, 32))
    else:
        assert checkpoint.null_embedding is None


def test_files_of_other_programs(tmp_path):
    """What PyTorch saves besides the weights: modules' versions, types, shared storages and views, older protocols."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2, dtype=torch.float64), torch.nn.Linear(2, 2, dtype=torch.bfloat16))
    shared = torch.arange(12.0).reshape(3, 4)
    content = {"step": 3, "rates": [0.1, None, (1, 2)], "state": layer.state_dict(), "a": shared, "b": shared.T[1:]}
    torch.save(content, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    expected = {f"state.{name}": tensor for name, tensor in layer.state_dict().items()}
    expected |= {"a": shared, "b": shared.T[1:]}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
    assert {name: found[name].dtype for name in found} == {name: expected[name].dtype for name in found}
    found["a"] += 1  # a mapped file is never written to
    assert torch.equal(read_torch(tmp_path / "x.pt")["a"], shared)


def test_trainable_parameters(tmp_path):
    trainable = {name: torch.nn.Parameter(tensor) for name, tensor in model("projections").state_dict().items()}
    torch.save(trainable, tmp_path / "p.pt")
    tensors = open_checkpoint(tmp_path / "p.pt").tensors
    assert not any(tensor.requires_grad or isinstance(tensor, torch.nn.Parameter) for tensor in tensors.values())


@pytest.mark.parametrize("shape", [(32,), (1, 32), (1, 1, 32)])
def test_shapes_of_null_embeddings(tmp_path, shape):
    content = {"unet": model("keyframe_unet").state_dict(), "null_embedding": torch.arange(32.0).reshape(shape)}
    torch.save(content, tmp_path / "t2v.pt")
    assert torch.equal(open_checkpoint(tmp_path / "t2v.pt").null_embedding, torch.arange(32.0))


def test_another_part_is_named(published):
    message = refusal(open_checkpoint, published / "video_movq.pt", expect="image_movq")
    assert "the temporal MoVQ instead of the image MoVQ" in message
    message = refusal(open_checkpoint, published / "movq.pt", expect=("keyframe_unet", "interpolation_unet"))
    assert "the image MoVQ instead of the keyframe U-Net or the interpolation U-Net" in message


@pytest.fixture
def folder(published, tmp_path):
    return Path(shutil.copytree(published / "flan-ul2", tmp_path / "ul2"))


def test_bad_folders(folder):
    index, shard = folder / "model.safetensors.index.json", "model-00002-of-00002.safetensors"
    (folder / shard).rename(folder / "away")
    assert f"lacks 1 of its 2 weight files, {shard} first" in refusal(open_checkpoint, folder)
    for text in ("[]", "{", "{}", "[" * 100_000, '{"weight_map": {"a": "../"}}', '{"a": ' + "9" * 5000 + "}"):
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
    for distance in ("64", 0, True, [[]]):
        (folder / "config.json").write_text(json.dumps(config | {"relative_attention_max_distance": distance}))
        assert "states relative_attention_max_distance" in refusal(open_checkpoint, folder)
    for text in ('{"a": ' * 100_000, '{"a": ' + "9" * 5000 + "}", '{"a": "' + "x" * 2_000_000 + '"}'):
        (folder / "config.json").write_text(text)
        assert "not a readable JSON object" in refusal(open_checkpoint, folder)
    (folder / "config.json").unlink()
    assert open_checkpoint(folder).config["num_heads"] == ENCODER["num_heads"]


def test_single_file_folders(published, tmp_path):
    tensors = model("text_encoder").state_dict()
    for name, save in (("model.safetensors", save_file), ("pytorch_model.bin", torch.save)):
        (tmp_path / name).mkdir()
        save(tensors, tmp_path / name / name)
        assert open_checkpoint(tmp_path / name).config == open_checkpoint(published / "flan-ul2").config
