"""The tiny weights: complete, small, the same on every run, and sane enough that a wrong picture would be noticed."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kv_core.checkpoints import open_checkpoint
from kv_core.interpolation_unet import InterpolationUNet
from kv_core.keyframe_unet import KeyframeUNet
from kv_core.movq import MoVQ
from kv_core.operations import TorchOperations
from kv_core.text_encoder import BASE, INTERPOLATION, TextModel, load_tokenizer, null_context
from tools import tiny_weights

PARTS = {
    "diffusion_models/kv-tiny/keyframes.safetensors": "keyframe_unet",
    "diffusion_models/kv-tiny/interpolation.safetensors": "interpolation_unet",
    "vae/kv-tiny/movq.safetensors": "image_movq",
    "vae/kv-tiny/video_movq.safetensors": "video_movq",
    "text_encoders/kv-tiny/flan-ul2": "text_encoder",
    "text_encoders/kv-tiny/flan-ul2/model.safetensors": "text_encoder",
    "text_encoders/kv-tiny/t5_projections.safetensors": "projections",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    tiny_weights.main(["--out", str(folder)])
    return folder / "models"


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def network(models, name, model_class):
    checkpoint = open_checkpoint(models / name)
    built = model_class(**checkpoint.config, operations=TorchOperations)
    built.load_state_dict(checkpoint.state_dict())
    return built.eval(), checkpoint.null_embedding


@pytest.fixture(scope="module")
def text(models):
    flan = models / "text_encoders/kv-tiny/flan-ul2"
    encoder, projections = open_checkpoint(flan), open_checkpoint(flan.parent / "t5_projections.safetensors")
    model = TextModel(encoder.config, projections.config["context_dim"], operations=TorchOperations)
    model.text_encoder.load_state_dict(encoder.state_dict())
    model.projections.load_state_dict(projections.state_dict())
    return load_tokenizer(flan), model


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_there(models, name):
    checkpoint = open_checkpoint(models / name, expect=PARTS[name])
    assert checkpoint.config.get("context_dim", tiny_weights.CONTEXT_DIM) == tiny_weights.CONTEXT_DIM
    assert (checkpoint.null_embedding is not None) == PARTS[name].endswith("_unet")


def test_small_and_nothing_else(models):
    assert sum(path.stat().st_size for path in models.rglob("*") if path.is_file()) < 16e6
    assert {path.name for path in models.rglob("*") if path.is_file()} == {
        "keyframes.safetensors", "interpolation.safetensors", "movq.safetensors", "video_movq.safetensors",
        "t5_projections.safetensors", "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json",
        "special_tokens_map.json",
    }  # fmt: skip


def test_command(models, tmp_path, capsys):
    script = Path(tiny_weights.__file__)
    command = [sys.executable, script, "--out", tmp_path]  # from another folder, with nothing on the path
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert hashes(tmp_path / "models") == hashes(models)
    with pytest.raises(SystemExit):
        tiny_weights.main(["--help"])
    assert "--force" in capsys.readouterr().out


def test_complete_sets_are_kept_and_incomplete_ones_completed(models, tmp_path, capsys):
    tiny_weights.main(["--out", str(tmp_path)])
    movq = tmp_path / "models/vae/kv-tiny/movq.safetensors"
    movq.write_bytes(b"mine")
    tiny_weights.main(["--out", str(tmp_path)])
    assert movq.read_bytes() == b"mine" and "already" in capsys.readouterr().out
    (tmp_path / "models/text_encoders/kv-tiny/flan-ul2/config.json").unlink()
    tiny_weights.main(["--out", str(tmp_path)])
    assert hashes(tmp_path / "models") == hashes(models)
    movq.write_bytes(b"mine")
    tiny_weights.main(["--out", str(tmp_path), "--force"])
    assert hashes(tmp_path / "models") == hashes(models)


def test_tokenizer(text):
    tokenize, _ = text
    ids, mask, cut = tokenize("A red fox")
    words = tiny_weights.vocabulary()
    assert ids[0, :5].tolist() == [words["a"], words["red"], words["fox"], 1, 0] and mask.sum() == 4 and not cut
    assert ids.shape == (1, 128)
    ids, mask, _ = tokenize("Xylophones (7)!")
    assert 2 not in ids and mask.sum() > 5  # unknown words fall into characters
    assert 2 in tokenize("日本")[0]
    long = tokenize("fox " * 200)
    assert long.cut and long.input_ids[0, -1] == 1


@torch.inference_mode()
def test_prompts_and_projections_differ(text):
    tokenize, model = text
    context, mask = model.encode(*tokenize("a red fox in snow")[:2])
    other, _ = model.encode(*tokenize("a blue owl in fog")[:2])
    assert context.shape == other.shape == (1, 7, tiny_weights.CONTEXT_DIM) and mask.sum() == 6
    assert 0.5 < context[:, :6].std() < 2
    assert (context - other).abs().mean() > 0.1
    second, _ = model.encode(*tokenize("a red fox in snow")[:2], INTERPOLATION)
    assert (context - second).abs().mean() > 0.1
    assert set(model.projections) == {BASE, INTERPOLATION}


@torch.inference_mode()
def test_unets_stay_finite_and_hear_their_inputs(models, text):
    tokenize, text_model = text
    context, mask = text_model.encode(*tokenize("a red fox in snow")[:2])
    torch.manual_seed(0)
    unet, null = network(models, "diffusion_models/kv-tiny/keyframes.safetensors", KeyframeUNet)
    empty, empty_mask = null_context(null, context)
    x, contexts, masks = (
        torch.randn(1, 9, 1, 8, 8).repeat(2, 1, 1, 1, 1),
        torch.cat([context, empty]),
        torch.cat([mask, empty_mask]),
    )
    image = unet(x, torch.tensor([500, 500]), contexts, masks, mode="image")
    x = torch.randn(1, 9, 3, 8, 8).repeat(2, 1, 1, 1, 1)
    scores = {"motion_score": torch.full((2, 1), 10), "noise_augmentation": torch.full((2, 1), 20)}
    video = unet(x, torch.tensor([500, 500]), contexts, masks, **scores)
    unet, _ = network(models, "diffusion_models/kv-tiny/interpolation.safetensors", InterpolationUNet)
    x = torch.randn(1, 20, 2, 8, 8).repeat(2, 1, 1, 1, 1)
    between = unet(
        x, torch.tensor([500, 500]), contexts, masks,
        temporal_mask=torch.ones(2), skip_frames=torch.tensor([3, 3]), perturbation_time=torch.zeros(2),
    )  # fmt: skip
    for out in (image, video, between):
        assert torch.isfinite(out).all() and 0.05 < out.std() < 1
        assert (out[0] - out[1]).abs().mean() > 1e-3  # the prompt and its absence


@torch.inference_mode()
def test_pictures_are_noise_and_not_black(models):
    torch.manual_seed(0)
    movq, _ = network(models, "vae/kv-tiny/movq.safetensors", MoVQ)
    video, _ = network(models, "vae/kv-tiny/video_movq.safetensors", MoVQ)
    latents = torch.rand(3, 4, 8, 8) * 2 - 1
    for pixels in (movq.decode(latents[:1]), video.decode(latents)):
        assert pixels.shape[-2:] == (64, 64)
        picture = ((pixels + 1) / 2).clamp(0, 1) * 255
        assert 60 < picture.mean() < 195 and picture.std() > 30
    assert (picture[0] - picture[1]).abs().mean() > 10  # frames differ
    encoded = movq.encode(movq.decode(latents[:1]).clamp(-1, 1))
    assert encoded.shape == (1, 4, 8, 8) and 0.1 < encoded.std() < 2
