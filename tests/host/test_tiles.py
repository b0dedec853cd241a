"""MoVQs decode in tiles: how far that is from the whole picture, and that it is what follows when memory runs out."""

import logging

import pytest
import torch

from kv_core.networks import memory
from kv_core.pictures.images import psnr
from tools.host import ROOT
from training import world

SIDE = 128  # pixels
FRAMES = 5


@pytest.fixture(scope="module")
def clip():
    """Frames of a moving shape `[5, 3, 256, 256]` in [-1, 1]."""
    scenes = world.sample_scenes(1, torch.tensor([50]), torch.Generator().manual_seed(3))
    frames = world.draw(scenes, torch.linspace(0, 0.2, FRAMES), SIDE)
    return frames.flatten(0, 1) * 2 - 1


@pytest.fixture(scope="module")
def movqs(adapters):
    folder = ROOT / "models/vae/kv-tiny"
    return {
        part: adapters.movq.load_movq(folder / f"{part.replace('image_', '')}.safetensors", part, "fp32")
        for part in ("image_movq", "video_movq")
    }


@pytest.fixture(scope="module")
def latents(movqs, clip):
    with torch.inference_mode():
        return torch.cat([movqs["image_movq"].encode(frame[None]) for frame in clip])


def decode(movqs, part, latents, tile):
    call = movqs[part].decode_images if part == "image_movq" else movqs[part].decode_video
    with torch.inference_mode():
        return torch.cat(list(call(latents, tile)))


@pytest.mark.parametrize("part", ["image_movq", "video_movq"])
def test_tiles_show_the_same_picture(movqs, latents, part):
    """As stated in the input's tooltip; each tile by its own statistics is at 20 to 24 dB."""
    whole = decode(movqs, part, latents, 0)
    assert all(26 < psnr(decode(movqs, part, latents, tile), whole, 2, dims=None) < 40 for tile in (8, 12))
    assert torch.equal(decode(movqs, part, latents, 16), whole), "one tile is the whole picture"


def test_tiles_leave_nothing_behind(movqs, latents):
    whole = decode(movqs, "image_movq", latents, 0)
    decode(movqs, "image_movq", latents, 8)
    assert torch.equal(decode(movqs, "image_movq", latents, 0), whole)


@pytest.mark.parametrize("tile, largest", [(0, 16), (32, 16), (12, 12), (8, 8), (4, 8)])
def test_room_is_asked_for_the_largest_map(movqs, latents, monkeypatch, tile, largest):
    """Tiles share statistics that are taken at half the size, so smaller ones need no less."""
    asked, movq = [], movqs["video_movq"]
    monkeypatch.setattr(movq, "load", lambda needed: asked.append(needed) or movq.patcher.model)
    decode(movqs, "video_movq", latents, tile)
    assert asked == [memory.movq_decode(5, 8 * largest, 8 * largest, movq.patcher.model.ch, torch.float32)]


def test_a_tile_larger_than_the_picture_is_no_smaller_one(movqs, latents, monkeypatch, caplog):
    def full(chunk):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(movqs["video_movq"].patcher.model, "decode", full)
    with caplog.at_level(logging.WARNING), pytest.raises(torch.OutOfMemoryError):
        decode(movqs, "video_movq", latents, 64)
    assert caplog.text.count("continuing in tiles of 64 pixels") == 1 == caplog.text.count("continuing")


@pytest.mark.parametrize("room, reached", [(16, 0), (12, 8), (8, 8)])
def test_smaller_tiles_when_memory_runs_out(movqs, latents, monkeypatch, caplog, room, reached):
    network = movqs["video_movq"].patcher.model
    whole = network.decode

    def in_little_memory(chunk):
        if max(chunk.shape[2:]) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(chunk)

    monkeypatch.setattr(network, "decode", in_little_memory)
    with caplog.at_level(logging.WARNING):
        result = decode(movqs, "video_movq", latents, 0)
    assert ("tiles of 64 pixels" in caplog.text) == bool(reached)
    monkeypatch.undo()
    assert torch.equal(result, decode(movqs, "video_movq", latents, reached))


def test_no_room_even_for_the_smallest_tiles(movqs, latents, monkeypatch):
    def never(chunk):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(movqs["video_movq"].patcher.model, "decode", never)
    with pytest.raises(torch.OutOfMemoryError):
        decode(movqs, "video_movq", latents, 0)
