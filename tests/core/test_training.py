"""The toy world reads back what it draws, and the losses train what the sampler asks for."""

import pytest
import torch
from einops import rearrange

from kv_core import diffusion, frames
from kv_core.interpolation_unet import InterpolationUNet
from kv_core.keyframe_unet import KeyframeUNet
from kv_core.movq import MoVQ
from kv_core.text_encoder import load_tokenizer
from training import data, losses, tiny, train, world
from training.tiny import TrainableOperations, trainable
from training.trainer import Trainer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clips():
    """(scenes, three true frames of each, what the reader sees in them)."""
    scores = torch.tensor([1.0, 10.0, 50.0, 100.0]).repeat(60)
    scenes = world.sample_scenes(len(scores), scores, generator())
    drawn = world.draw(scenes, torch.tensor([0.0, 6.0, 11.0]))
    return scenes, drawn, world.read(drawn.flatten(0, 1))


@pytest.mark.parametrize("name", ["shape", "colour", "background"])
def test_true_clips_are_read_back(clips, name):
    scenes, _, seen = clips
    assert seen.found.all()
    assert (getattr(seen, name).reshape(-1, 3) == getattr(scenes, name)[:, None]).float().mean() > 0.99


def test_motion_is_read_back(clips):
    scenes, _, seen = clips
    tracks = seen.centre.reshape(-1, 3, 2)
    assert (tracks - world.positions(scenes, torch.tensor([0.0, 6.0, 11.0]))).abs().max() < 0.2
    assert (world.read_direction(tracks) == scenes.direction).float().mean() > 0.99
    moving = scenes.direction != list(world.DIRECTIONS).index("still")
    ways = (tracks[:, -1] - tracks[:, 0]).norm(dim=1)[moving] / 11
    torch.testing.assert_close(ways, scenes.speed[moving], atol=0.02, rtol=0)


def test_an_empty_picture_is_not_found():
    noise = 0.05 * torch.randn(3, 3, 64, 64, generator=generator())
    assert not world.read(noise).found.any()


def test_captions_have_known_words_and_one_length_a_template(clips):
    words = tiny.vocabulary()
    for template in range(len(world.TEMPLATES)):
        captions = clips[0].captions(template)
        assert len({len(text.split()) for text in captions}) == 1
        assert all(word in words for text in captions for word in text.split())
    assert world.caption("red", "circle", "right", "grey") == "a red circle moving right on a grey background"


def test_speed_follows_the_motion_score():
    speeds = world.speed(torch.tensor([1, 10, 50, 100, 1000]))
    assert speeds.tolist() == pytest.approx([0.5, 1.2, 2.1, 3.0, 3.0])
    assert (world.speed(torch.arange(1, 101)).diff() > 0).all()


class Perfect(torch.nn.Module):
    """A U-Net that knows the answer: it returns what a loss should be zero for, and notes what it was given."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x, time, context, mask, **conditions):
        self.given = {"x": x, "time": time, "context": context, "mask": mask, **conditions}
        return self.answer(x, time)


@pytest.fixture
def text():
    return torch.randn(64, 5, 8, generator=generator(1)), torch.tensor([[1, 1, 1, 1, 0]]).repeat(64, 1)


def test_keyframe_loss_asks_for_the_samplers_noise(text):
    latents = torch.randn(64, 4, 3, 8, 8, generator=generator(2)).clamp(-1, 1)
    null = torch.ones(8)

    def noise(x, time):
        return torch.cat([
            (row - diffusion.abar(int(t)).sqrt() * clip) / (1 - diffusion.abar(int(t))).sqrt()
            for row, clip, t in zip(x[:, None, :4], latents[:, None], time)
        ])  # fmt: skip

    unet = Perfect(noise)
    assert losses.keyframe_loss(unet, latents, text, null, torch.full((64,), 7.0), generator()) < 1e-6
    given = unet.given
    condition, frame_mask = given["x"][:, 4:8], given["x"][:, 8]
    with_frame = frame_mask[:, 0].flatten(1).all(1)
    without_text = given["context"][:, 0].eq(1).all(1) & given["context"][:, 1:].eq(0).all(2).all(1)
    assert not frame_mask[:, 1:].any() and not condition[:, :, 1:].any()
    assert torch.equal(given["mask"][without_text].sum(1), torch.ones(int(without_text.sum())).long())
    assert with_frame.sum() < 64 and (without_text & with_frame).any() and not (~without_text & ~with_frame).any()
    assert given["motion_score"].eq(7).all() and 0 <= given["noise_augmentation"].min() <= 200


def test_interpolation_loss_asks_for_the_samplers_velocity(text):
    clip = torch.randn(64, 4, 9, 8, 8, generator=generator(2)).clamp(-1, 1)
    between = losses.gap_frames(clip)
    assert torch.equal(frames.interleave(clip[:1, :, ::4], between[:1]), clip[:1])

    def velocity(x, time):
        a = diffusion.alphas_cumprod()[time][:, None, None, None, None]
        noise = (x[:, 4:16] - a.sqrt() * between) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * between

    unet = Perfect(velocity)
    skips = torch.full((64,), 3)
    assert losses.interpolation_loss(unet, clip, text, torch.ones(8), skips, generator()) < 1e-6
    kept = unet.given["temporal_mask"]
    assert 0 < kept.sum() < 64
    assert torch.equal(unet.given["x"][kept][:, :4], clip[kept][:, :, :8:4])
    assert torch.equal(unet.given["x"][kept][:, 16:], clip[kept][:, :, 4::4])
    assert not unet.given["x"][~kept][:, :4].any() and unet.given["mask"][~kept].sum(1).eq(1).all()


def test_losses_fit_the_published_sizes():
    factory = {"operations": TrainableOperations, "device": "meta"}
    text = torch.zeros(2, 7, 4096, device="meta"), torch.ones(2, 7, dtype=torch.long, device="meta")
    null = torch.zeros(4096, device="meta")
    keyframe_unet, interpolation_unet = KeyframeUNet(**factory), InterpolationUNet(**factory)
    latents = torch.zeros(2, 4, 5, 8, 8, device="meta")
    skips = torch.ones(2, dtype=torch.long)
    values = [
        losses.first_frame_loss(keyframe_unet, latents[:, :, :1], text, null, generator()),
        losses.keyframe_loss(keyframe_unet, latents, text, null, torch.ones(2), generator()),
        losses.interpolation_loss(interpolation_unet, latents, text, null, skips, generator()),
        losses.reconstruction_loss(MoVQ(temporal=True, **factory), latents.new_zeros(2, 3, 64, 64), generator()),
    ]
    assert all(value.shape == () and value.requires_grad for value in values)


def test_a_resumed_run_is_the_same_run(tmp_path):
    def train(folder, stop=None):
        torch.manual_seed(0)
        movq = trainable(MoVQ(ch=32, ch_mult=(1, 1), num_res_blocks=1, operations=TrainableOperations))

        def loss(step, generator):
            if step == stop:
                raise KeyboardInterrupt
            pixels = torch.rand(2, 3, 16, 16, generator=generator)
            return losses.reconstruction_loss(movq, pixels, generator)

        trainer = Trainer("movq", {"movq": movq}, folder, 6, 1e-3, save_every=0)
        try:
            trainer.run(loss)
        except KeyboardInterrupt:
            return train(folder)
        return trainer.averages()["movq"]

    whole, resumed = train(tmp_path / "whole"), train(tmp_path / "killed", stop=4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_folding_of_gaps_keeps_frames_in_order():
    clip = rearrange(torch.arange(9.0), "t -> 1 1 t 1 1").expand(1, 4, 9, 1, 1)
    assert losses.gap_frames(clip)[0, ::4, :, 0, 0].tolist() == [[1, 5], [2, 6], [3, 7]]


class Transparent:
    """A MoVQ whose latents are the pixels, times `gain`."""

    def __init__(self, gain=1.0):
        self.gain = gain

    def encode(self, pixels):
        return self.gain * pixels

    def decode(self, latents):
        return latents / self.gain


def test_latents_beyond_the_samplers_clamp_cost():
    pixels = torch.ones(2, 3, 8, 8)
    inside, beyond = (losses.reconstruction_loss(Transparent(gain), pixels, generator(), 0.0) for gain in (0.9, 1.95))
    assert inside < 1e-6 and beyond.item() == pytest.approx(1.0)


def test_clips_are_at_the_rates_of_interpolation(tmp_path):
    clips = data.make(tmp_path / "clips.safetensors", Transparent(), 12, chunk=6)
    assert torch.equal(clips["medium"][:, ::4], clips["keyframes"])
    assert clips["first_frame"].shape == (12, 3, 128, 128)
    tracks = world.read(clips["high"][:, [0, 32]].float().flatten(0, 1)).centre.reshape(12, 2, 2)
    scenes = data.scenes(clips, torch.arange(12))
    moved = scenes.speed * (scenes.direction != list(world.DIRECTIONS).index("still"))
    torch.testing.assert_close((tracks[:, 1] - tracks[:, 0]).norm(dim=1), 2 * moved, atol=0.05, rtol=0)


def test_training_reads_captions_as_the_pipeline_does(tmp_path):
    parts = train.Tiny(tmp_path)
    for path, content in tiny.text_files(tmp_path, tiny.ENCODER, tiny.vocabulary()).items():
        path.write_text(content)
    caption = world.caption("red", "circle", "right", "grey")
    tokens = load_tokenizer(tmp_path)(caption)
    expected = parts.text.encode(tokens.input_ids, tokens.attention_mask)
    for ours, theirs in zip(parts.encode([caption]), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
