"""The toy world reads back what it draws, and the losses train what the sampler asks for."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from einops import rearrange

from kv_core.files.checkpoints import open_checkpoint
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.text_encoder import TextModel, load_tokenizer
from kv_core.pipeline import FILE_STEMS
from kv_core.sampling import diffusion, frames
from tests.support.families import thorough
from training import caption_encoder, data, losses, tiny, train, world
from training.stages import Stages
from training.tiny import TrainableOperations, trainable
from training.trainer import Trainer, load_averages


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def clips():
    """(scenes, three true frames of each, what the reader sees in them)."""
    scores = torch.tensor([1.0, 10.0, 50.0, 100.0]).repeat(60)
    scenes = world.sample_scenes(len(scores), scores, generator())
    drawn = world.draw(scenes, torch.tensor([0.0, 4.0, 11.0]))
    return scenes, drawn, world.read(drawn.flatten(0, 1))


@pytest.mark.parametrize("name", ["shape", "colour", "background"])
def test_true_clips_are_read_back(clips, name):
    scenes, _, seen = clips
    assert seen.found.all()
    assert (getattr(seen, name).reshape(-1, 3) == getattr(scenes, name)[:, None]).float().mean() > 0.99


def test_motion_is_read_back(clips):
    scenes, _, seen = clips
    tracks = seen.centre.reshape(-1, 3, 2)
    assert (tracks - world.positions(scenes, torch.tensor([0.0, 4.0, 11.0]))).norm(dim=2).quantile(0.99) < 0.3
    assert (world.read_direction(tracks) == scenes.direction).float().mean() > 0.99
    moving = scenes.direction != list(world.DIRECTIONS).index("still")
    ways = (tracks[:, 1] - tracks[:, 0]).norm(dim=1)[moving] / 4  # before a fast one reaches the edge
    torch.testing.assert_close(ways, scenes.speed[moving], atol=0.1, rtol=0)


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

    def forward(self, x, time, texts, **conditions):
        [text] = texts
        self.given = {
            "x": x,
            "time": time,
            "context": text.tokens,
            "mask": (text.mask[:, 0, 0] == 0).long(),
            **conditions,
        }
        return self.answer(x, time)


@pytest.fixture
def text():
    return torch.randn(64, 5, 8, generator=generator(1)), torch.tensor([[1, 1, 1, 1, 0]]).repeat(64, 1)


def test_keyframe_loss_asks_for_the_samplers_noise(text):
    latents = torch.randn(64, 4, 3, 8, 8, generator=generator(2)).clamp(-1, 1)
    null = torch.ones(8)

    def noise(x, time):
        return torch.cat(
            [
                (row - diffusion.abar(int(t)).sqrt() * clip) / (1 - diffusion.abar(int(t))).sqrt()
                for row, clip, t in zip(x[:, None, :4], latents[:, None], time)
            ]
        )

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


def test_errors_weigh_as_the_noise_that_hides_them():
    noise, predicted = torch.zeros(1, 4, 2, 8, 8), torch.ones(1, 4, 2, 8, 8)

    def loss(timestep, most=100.0):
        return losses.noise_loss(predicted, noise, torch.tensor([timestep]), most).item()

    abar = diffusion.abar(700).item()
    assert loss(0) == loss(100) == 1 and loss(999) == 100 and loss(999, most=1.0) == 1
    assert loss(700) == pytest.approx((1 - abar) / abar) and 1 < loss(700) < 100


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
    kept = torch.tensor(unet.given["temporal_mask"])
    assert 0 < kept.sum() < 64
    assert torch.equal(unet.given["x"][kept][:, :4], clip[kept][:, :, :8:4])
    assert torch.equal(unet.given["x"][kept][:, 16:], clip[kept][:, :, 4::4])
    assert not unet.given["x"][~kept][:, :4].any() and unet.given["mask"][~kept].sum(1).eq(1).all()


@pytest.mark.thorough
def test_losses_fit_the_published_sizes():
    factory = {"operations": TrainableOperations, "device": "meta"}
    text = torch.zeros(2, 7, 4096, device="meta"), torch.ones(2, 7, dtype=torch.long, device="meta")
    null = torch.zeros(4096, device="meta")
    keyframe_unet, interpolation_unet = KeyframeUNet(**factory), InterpolationUNet(**factory)
    latents = torch.zeros(2, 4, 5, 8, 8, device="meta")
    values = [
        losses.first_frame_loss(keyframe_unet, latents[:, :, :1], text, null, generator()),
        losses.keyframe_loss(keyframe_unet, latents, text, null, torch.ones(2), generator()),
        losses.interpolation_loss(interpolation_unet, latents, text, null, torch.ones(2).long(), generator()),
        losses.reconstruction_loss(MoVQ(temporal=True, **factory), latents.new_zeros(2, 3, 64, 64), generator()),
    ]
    assert all(value.shape == () and value.requires_grad for value in values)


def small_movq():
    torch.manual_seed(0)
    return trainable(MoVQ(ch=32, ch_mult=(1, 1), num_res_blocks=1, operations=TrainableOperations))


@pytest.mark.parametrize("stop", [1, thorough(4)])  # in the warm-up, which is two steps of twenty, and behind it
def test_a_resumed_run_is_the_same_run(tmp_path, stop):
    def train(folder, stop=None):
        movq = small_movq()

        def loss(step, generator):
            if step == stop:
                raise KeyboardInterrupt
            pixels = torch.rand(2, 3, 16, 16, generator=generator)
            return losses.reconstruction_loss(movq, pixels, generator)

        trainer = Trainer("movq", {"movq": movq}, folder, 20, 1e-3, save_every=0)
        try:
            trainer.run(loss)
        except KeyboardInterrupt:
            return train(folder)
        found = small_movq()
        load_averages(folder / "movq.state.pt", {"movq": found}, "cpu")
        return {**found.state_dict(), **{f"last.{name}": value for name, value in movq.state_dict().items()}}

    whole, resumed = train(tmp_path / "whole"), train(tmp_path / "killed", stop)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_rate_rises_and_falls_and_averages_follow(tmp_path):
    layer = torch.nn.Linear(1, 1)
    trainer, rates, weights = Trainer("layer", {"layer": layer}, tmp_path, 1000, 0.5), [], []

    def loss(step, generator):
        rates.append(trainer.optimiser.param_groups[0]["lr"])
        weights.append(layer.weight.item())
        return (layer.weight - 3).square().sum()

    trainer.run(loss)
    rates, average = torch.tensor(rates, dtype=torch.float64), trainer.averages["layer"].module.weight.item()
    assert rates[0] == 0.5 / 100 and rates.argmax() == 100 and rates[100] == 0.5, "a tenth of the run"
    assert (rates[:101].diff() > 0).all() and (rates[100:].diff() < 0).all() and 0 < rates[-1] < 1e-4
    expected = weights[1]
    for count, weight in enumerate([*weights[2:], layer.weight.item()], 1):
        expected += (1 - min(0.999, (1 + count) / (10 + count))) * (weight - expected)
    assert average == pytest.approx(expected, abs=1e-4)


WORKER = """
import sys
from pathlib import Path
import torch
from training import workers
from training.trainer import Trainer

rank, folder = int(sys.argv[1]), Path(sys.argv[2])
torch.manual_seed(0)
layer = torch.nn.Linear(3, 1)
with workers.joined(folder / "meeting", rank, 2):
    made = workers.in_turn(lambda: (folder / "made").exists() or (folder / "made").write_text("once"))
    targets = torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 1.0]])[rank : rank + workers.share(2)]
    Trainer("layer", {"layer": layer}, folder, 5, 0.1).run(lambda step, generator: layer(targets).square().mean())
    layer.zero_grad()
    layer(targets).square().mean().backward()
    workers.average(list(layer.parameters()))
left = [path for path in Path("/proc/self/task").glob("*/comm") if "gloo" in path.read_text()]
torch.save((made, layer.state_dict(), layer.weight.grad, len(left)), folder / f"{rank}.pt")
"""


@pytest.mark.thorough
def test_workers_step_together_as_one_with_the_whole_batch(tmp_path):
    root = Path(train.__file__).parent.parent
    running = [subprocess.Popen([sys.executable, "-c", WORKER, str(rank), tmp_path], cwd=root) for rank in range(2)]
    assert [process.wait(120) for process in running] == [0, 0]
    results = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    (made, first, gradient, left), (found, second, _, _) = results
    assert not left, "threads of the group, which may abort the process as it ends"
    assert made == 4 and found is True  # the first wrote the file, the second saw it
    torch.manual_seed(0)
    layer, batch = torch.nn.Linear(3, 1), torch.tensor([[1.0, 2.0, 3.0], [-4.0, 0.5, 1.0]])
    Trainer("alone", {"layer": layer}, tmp_path, 5, 0.1).run(lambda step, generator: layer(batch).square().mean())
    for name, value in layer.state_dict().items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], value, atol=1e-6, rtol=0)
    layer.zero_grad()
    layer(batch).square().mean().backward()
    torch.testing.assert_close(gradient, layer.weight.grad)  # the optimiser would not tell a sum from a mean


@pytest.mark.parametrize(("towards_noise", "late"), [(1.0, 0.1), (2.0, 0.1**0.5)])
def test_late_timesteps_are_drawn_as_often_as_asked(towards_noise, late):
    latents = torch.zeros(20000, 1, 1, 1, 1)
    _, _, time = losses.noised(latents, generator(), towards_noise)
    assert time.min() >= 0 and time.max() <= 999
    assert (time >= 900).float().mean().item() == pytest.approx(late, abs=0.01)


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
    lost_in_the_clamp = 1 - 1 / 1.95
    assert inside < 1e-6 and beyond.item() == pytest.approx(1.0 + lost_in_the_clamp)


def test_changes_from_frame_to_frame_cost():
    class Flickering(Transparent):
        def decode(self, latents):
            return latents + torch.tensor([0.1, -0.1, 0.1])[:, None, None, None]

    class Off(Transparent):
        def decode(self, latents):
            return latents + 0.1

    pixels = torch.zeros(3, 3, 8, 8)
    for movq, cost in ((Flickering(), 0.1 + 2 * 0.2), (Off(), 0.1)):
        loss = losses.reconstruction_loss(movq, pixels, generator(), 0.0, change_weight=2.0)
        assert loss.item() == pytest.approx(cost)


class PixelMoVQ(Transparent):
    """The same as the module that encodes a training's clips."""

    def parameters(self):
        return iter([torch.zeros(1)])


def test_clips_are_at_the_rates_of_interpolation(tmp_path):
    clips = data.interpolation_clips(tmp_path, PixelMoVQ, 12)
    assert clips["medium"].shape == clips["high"].shape == (12, 45, 3, 64, 64)
    moved = data.scenes(clips, torch.arange(12))
    moved = moved.speed * (moved.direction != list(world.DIRECTIONS).index("still"))
    early = torch.minimum(moved * 4, torch.tensor(13.2))  # the way that every shape has room for

    def ways(rate, frame):
        tracks = world.read(clips[rate][:, [0, frame]].float().flatten(0, 1)).centre.reshape(12, 2, 2)
        return (tracks[:, 1] - tracks[:, 0]).norm(dim=1)

    torch.testing.assert_close(ways("medium", 16), early, atol=0.3, rtol=0)
    high = ways("high", 32)  # begins anywhere in the clip, so a fast one may be at the edge
    assert (high <= 2 * moved + 0.3).all() and (high - 2 * moved).abs().median() < 0.2


def test_keyframe_clips_begin_with_their_first_frame(tmp_path):
    clips = data.keyframe_clips(tmp_path, PixelMoVQ, 12)
    assert clips["keyframes"].shape == (12, 12, 3, 64, 64) and clips["first_frame"].shape == (12, 3, 128, 128)
    small = torch.nn.functional.avg_pool2d(clips["first_frame"].float(), 2)
    assert (small - clips["keyframes"][:, 0].float()).abs().mean() < 0.01
    assert 1 <= clips["motion_score"].min() and clips["motion_score"].max() <= 100
    again = data.keyframe_clips(tmp_path, None, 12)  # from the file
    assert torch.equal(again["keyframes"], clips["keyframes"])


def test_prompts_to_judge_by_are_never_trained_on():
    def drawn(unseen):
        scenes = world.sample_scenes(3000, torch.ones(3000), generator(), unseen)
        return set(scenes.captions())

    assert len(drawn(True)) == 60 and not drawn(True) & drawn(False)


def test_training_reads_captions_as_the_pipeline_does(tmp_path):
    text = Stages(tmp_path)._text_model()
    for path, content in tiny.text_files(tmp_path).items():
        path.write_text(content)
    caption = world.caption("red", "circle", "right", "grey")
    tokens = load_tokenizer(tmp_path)(caption)
    expected = text.encode(tokens.input_ids, tokens.attention_mask)
    for ours, theirs in zip(text.encode(*caption_encoder.tokens([caption])), expected):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_what_a_caption_names():
    ids, mask = caption_encoder.tokens(["a red circle moving up", "a blue square standing still"])
    labels = [caption_encoder.label(ids, names).tolist() for names in caption_encoder.ATTRIBUTES]
    assert labels == [[1, 3], [1, 2], [3, 5], [0, 0]], "colour, shape, direction, background"
    assert mask.tolist() == [[1] * 6 + [0]] * 2


@pytest.mark.thorough
def test_the_text_stage_learns_what_captions_name():
    torch.manual_seed(0)
    text = trainable(TextModel(tiny.encoder_config(), tiny.CONTEXT_DIM, operations=TrainableOperations))
    heads = caption_encoder.Heads()
    optimiser = torch.optim.Adam([*text.parameters(), *heads.parameters()], 2e-3)
    curve = []
    for step in range(60):
        optimiser.zero_grad()
        loss = caption_encoder.loss(text, heads, generator(step), 32)
        loss.backward()
        optimiser.step()
        curve.append(loss.item())
    assert sum(curve[-10:]) < 0.5 * sum(curve[:10])


@pytest.mark.thorough
def test_all_stages_run_resume_and_write_files_the_loaders_take(tmp_path):
    work, out = tmp_path / "work", tmp_path / "models"
    command = [sys.executable, "-m", "training.train", "--work", work, "--out", out, "--scale", "0.0003"]
    root = Path(train.__file__).parent.parent
    part = subprocess.run([*command, "--stages", "movq", "text"], cwd=root, capture_output=True, text=True)
    assert part.returncode == 0, part.stderr
    assert "Still to train: movq_decoder, video_movq, interpolation, keyframes." in part.stdout
    first = (work / "movq.state.pt").stat().st_mtime_ns
    whole = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    assert (work / "movq.state.pt").stat().st_mtime_ns == first
    assert f"Next: python -m evaluation.report --work {work} --models {out}" in whole.stdout
    assert {open_checkpoint(path).part for path in out.rglob("*.safetensors")} == set(FILE_STEMS)
    # The encoder was settled by the first stage; the later ones leave it alone.
    files = (out / "vae/kv-tiny" / f"{name}.safetensors" for name in ("movq", "video_movq"))
    image, video = (open_checkpoint(file).tensors for file in files)
    assert all(torch.equal(value, video[name]) for name, value in image.items() if name.startswith("encoder."))
