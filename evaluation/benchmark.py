"""Measures whether the tiny model's clips show what was asked for: `python -m evaluation.benchmark`.

Every clip is made by kv_core's pipeline at the published defaults and judged by `world.read`, from pixels alone.
Prompts and seeds are unseen: their combinations of shape, colour, background and direction are never trained on.
"""

import argparse
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy
import torch

from kv_core.networks.text_encoder import null_context
from kv_core.pictures.images import psnr, to_images, to_pixels
from kv_core.pipeline import load_pipeline
from kv_core.sampling.frames import MOTION_SCORES
from kv_core.sampling.settings import FirstFrame, Interpolation, Keyframes, Run
from training import world
from training.trainer import SIDE_BY_SIDE

from . import record
from .record import Results, Task

FILES = {
    "keyframe_unet": "diffusion_models/kv-tiny/keyframes.safetensors",
    "interpolation_unet": "diffusion_models/kv-tiny/interpolation.safetensors",
    "image_movq": "vae/kv-tiny/movq.safetensors",
    "video_movq": "vae/kv-tiny/video_movq.safetensors",
    "projections": "text_encoders/kv-tiny/t5_projections.safetensors",
    "text_encoder": "text_encoders/kv-tiny/flan-ul2",
}
DEFAULTS = {"guidance": 5.0, "text": 5.0, "image": 2.0, "interpolation": 0.5, "augmentation": 20}
STEPS = (50, 50, 10)
UNCONDITIONAL = None  # in the place of a first frame's guidance: the null embedding is its prompt
EARLY = 4  # keyframes that a shape can move for at any speed before it may reach the edge


class Judge:
    """The pipeline of the tiny model, and its stages at the published defaults for scenes of the toy world."""

    def __init__(self, models):
        self.pipe = load_pipeline({part: Path(models) / name for part, name in FILES.items()}, "cpu")

    def first_frame(self, texts, seed, guidance=DEFAULTS["guidance"]):
        """A drawn first frame, as the Pillow image that image to video takes."""
        texts, guidance = guided(self.pipe, texts, guidance)
        settings = FirstFrame(2 * world.SIZE, 2 * world.SIZE, guidance)
        return self.pipe.decode_image(self.pipe.first_frame(texts, settings, Run(STEPS[0], seed)))

    def keyframes(self, texts, image, seed, motion="medium", text_guidance=DEFAULTS["text"]):
        settings = Keyframes(
            motion_score=MOTION_SCORES[motion],
            noise_augmentation=DEFAULTS["augmentation"],
            text_guidance=text_guidance,
            image_guidance=DEFAULTS["image"],
        )
        frame = self.pipe.encode_image(image, world.SIZE, world.SIZE)
        return self.pipe.keyframes(texts, frame, settings, Run(STEPS[1], seed))

    def interpolate(self, texts, latents, seed):
        settings = Interpolation(3, DEFAULTS["interpolation"])
        return self.pipe.interpolate(texts, latents, settings, Run(STEPS[2], seed))

    def pixels(self, latents):
        """Latents `[1, 4, t, 8, 8]` -> frames `[t, 3, 64, 64]` in [-1, 1]."""
        return bytes_to_pixels(self.pipe.decode_video(latents))


def guided(pipe, texts, guidance):
    """The texts and guidance of a first frame; with UNCONDITIONAL guidance the null embedding is its prompt."""
    if guidance is not UNCONDITIONAL:
        return texts, guidance
    (context, _), _ = texts
    return (null_context(pipe.keyframe[1], context), None), 0.0


def bytes_to_pixels(frames):
    return frames.float().movedim(-1, 1) / 127.5 - 1


def scene(index, motion="medium"):
    """Scene number `index` of those that were never trained on."""
    generator = torch.Generator().manual_seed(10_000 + index)
    return world.sample_scenes(1, torch.tensor([float(MOTION_SCORES[motion])]), generator, unseen=True)


def moving_scene(index, motion="medium"):
    """The first of a thousand scenes, other ones for every index, that does not stand still."""
    scenes = (scene(1000 * index + i, motion) for i in range(1000))
    return next(found for found in scenes if found.direction != list(world.DIRECTIONS).index("still"))


def picture(scenes):
    """The true first frame of a scene, as a Pillow image."""
    frame = world.draw(scenes, torch.zeros(1))[0, 0]
    return to_images(((frame.movedim(0, -1) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)[None])[0]


def compare(pixels, scenes):
    """What of shape, colour and direction a clip `[t, 3, 64, 64]` has in common with a scene: {name: bool}."""
    seen = world.read(pixels)
    if seen.found.float().mean() < 0.5:
        return dict.fromkeys(("shape", "colour", "direction", "all"), False)
    found = {
        name: (getattr(seen, name)[seen.found].mode().values == getattr(scenes, name)).item()
        for name in ("shape", "colour")
    }
    found["direction"] = (world.read_direction(seen.centre[None]) == scenes.direction).item()
    return {**found, "all": all(found.values())}


# One function a measurement; each takes the judge and an index, which decides the scene and the seeds.


def text_to_video(judge, index):
    scenes = scene(index)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    latents = judge.keyframes(texts, judge.first_frame(texts, index), index)
    clip = judge.interpolate(texts, latents, index)
    pixels = judge.pixels(clip)
    return {**compare(pixels, scenes), **flicker(judge, clip, pixels)}


def flicker(judge, latents, pixels):
    """Mean change from frame to frame of temporal and image MoVQ, where the picture stands still."""
    frames = torch.stack(
        [to_pixels(judge.pipe.decode_image(latents[:, :, i : i + 1]))[0] for i in range(latents.shape[2])]
    )
    still = still_parts(pixels)
    if not still.any():
        return {}
    return {"flicker_temporal": change(pixels, still), "flicker_image": change(frames, still)}


def still_parts(pixels):
    """Where the shape of a clip `[t, 3, 64, 64]` never comes: bool `[64, 64]`."""
    axis = torch.arange(world.SIZE) + 0.5
    x, y = world.read(pixels).centre.T[:, :, None, None]
    distance = (axis - x).square() + (axis[:, None] - y).square()
    return (distance > (world.RADIUS[1] + 5) ** 2).all(0)


def change(pixels, still):
    """Mean change from frame to frame in these parts, in 255ths."""
    return 127.5 * (pixels[1:] - pixels[:-1]).abs()[:, :, still].mean().item()


def motion(judge, index):
    """Speeds, in pixels a keyframe, at the four named motion scores; one first frame, a scene that moves."""
    scenes = moving_scene(index)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    image = judge.first_frame(texts, index)
    speeds = []
    for name in MOTION_SCORES:
        centre = world.read(judge.pixels(judge.keyframes(texts, image, index, name))).centre
        speeds.append(((centre[EARLY] - centre[0]).norm() / EARLY).item())
    return {"speeds": speeds, "in_order": all(a < b for a, b in zip(speeds, speeds[1:]))}


def image_to_video(judge, index):
    scenes = scene(20_000 + index)
    image = picture(scenes)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    pixels = judge.pixels(judge.interpolate(texts, judge.keyframes(texts, image, index), index))
    last = world.read(pixels[-1:])
    return {
        "psnr": psnr(pixels[0], to_pixels(image)[0], 2).item(),
        "persists": (last.found & (last.shape == scenes.shape) & (last.colour == scenes.colour)).item(),
        "direction": compare(pixels, scenes)["direction"],
    }


def interpolation(judge, index):
    return judge_gaps(judge, index, *true_clip(judge, index))


def true_clip(judge, index):
    """A fast scene, the latents `[1, 4, 45, 8, 8]` of its true frames, and these as the decoder shows them."""
    scenes = moving_scene(index, "extreme")
    times = torch.arange(45.0) / world.FRAMES_A_GAP
    latents = judge.pipe.movq.encode(world.draw(scenes, times)[0]).transpose(0, 1)[None]
    return scenes, latents, judge.pixels(latents)


def judge_gaps(judge, index, scenes, latents, truth):
    """True keyframes, interpolated: how far the frames between are off, before the shape may stop.

    Position against the scene's own; PSNR, and that of cross-fading the keyframes, against the true clip as the same
    decoder shows it, so that the decoder's own error counts for neither.
    """
    texts = judge.pipe.encode_text(scenes.captions()[0])
    pixels = judge.pixels(judge.interpolate(texts, latents[:, :, :: world.FRAMES_A_GAP], index))
    frame = torch.arange(EARLY * world.FRAMES_A_GAP)
    new = frame[frame % world.FRAMES_A_GAP != 0]
    left = new // world.FRAMES_A_GAP * world.FRAMES_A_GAP
    share = ((new - left) / world.FRAMES_A_GAP)[:, None, None, None]
    faded = (1 - share) * truth[left] + share * truth[left + world.FRAMES_A_GAP]
    centres = world.positions(scenes, new / world.FRAMES_A_GAP)[0]
    return {
        "error": (world.read(pixels[new]).centre - centres).norm(dim=1).mean().item(),
        "psnr": psnr(pixels[new], truth[new], 2).mean().item(),
        "psnr_faded": psnr(faded, truth[new], 2).mean().item(),
    }


def no_guidance(judge, index):
    """A first frame drawn without the prompt, and keyframes with a text guidance of 0."""
    scenes = scene(60_000 + index)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    image = judge.first_frame(texts, index, UNCONDITIONAL)
    return compare(judge.pixels(judge.keyframes(texts, image, index, text_guidance=0.0)), scenes)


def negative(judge, index):
    """The colour of a first frame whose prompt names none, without a negative prompt and with one of one colour."""
    scenes = scene(70_000 + index)
    prompt = scenes.captions(4)[0]
    unwanted = list(world.COLOURS)[index % len(world.COLOURS)]
    seen = {}
    for name, text in (("without", None), ("with", unwanted)):
        image = judge.first_frame(judge.pipe.encode_text(prompt, text), index)
        small = to_pixels(image.resize((world.SIZE, world.SIZE)))
        seen[name] = list(world.COLOURS)[world.read(small).colour.item()] == unwanted
    return seen


MEASUREMENTS = {
    "text_to_video": (text_to_video, 40),
    "motion": (motion, 8),
    "image_to_video": (image_to_video, 16),
    "interpolation": (interpolation, 24),
    "no_guidance": (no_guidance, 24),
    "negative": (negative, 48),
}


def plan(share: float = 1.0) -> list[Task]:
    """Every measurement as often as it is made, times `share`."""
    return [
        (name, str(index)) for name, (_, count) in MEASUREMENTS.items() for index in range(max(1, round(count * share)))
    ]


def run(models: Path, tasks: Sequence[Task], workers: int = 1) -> Iterator[dict]:
    """What each task's function gave, in their order."""
    if workers == 1:
        judge = Judge(models)
        yield from (_measure(judge, task) for task in tasks)
        return
    os.environ.update(SIDE_BY_SIDE)
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (models,)) as pool:
        yield from pool.map(_measure_there, tasks)


def _begin(models):
    global _judge
    torch.set_num_threads(1)
    _judge = Judge(models)


def _measure_there(task):
    return _measure(_judge, task)


@torch.no_grad()
def _measure(judge, task):
    name, index = task
    return MEASUREMENTS[name][0](judge, int(index))


def table(results: Results) -> str:
    """What was measured, what is wanted, and whether it holds."""
    lines = ["| measured | result | wanted | holds |", "| --- | --- | --- | --- |"]
    rows = (row for summary in SUMMARIES for row in summary(results))
    lines += (f"| {what} | {value} | {wanted} | {'yes' if holds else 'no'} |" for what, value, wanted, holds in rows)
    return "\n".join(lines) + "\n"


def mean(results: Results, name: str, key: str) -> float:
    return float(numpy.mean([row[key] for row in results[name].values() if key in row]))


# One function a measurement: rows (measured, result, wanted, holds).


def _share(results, name, key, what, floor):
    value = mean(results, name, key)
    return f"{what} ({len(results[name])} clips)", f"{value:.1%}", f"at least {floor:.0%}", value >= floor


def _text_to_video(results):
    floors = {"colour": 0.95, "shape": 0.9, "direction": 0.85}
    for key, floor in floors.items():
        yield _share(results, "text_to_video", key, f"text to video: {key} matches", floor)
    yield _share(results, "text_to_video", "all", "text to video: all three match", 0.8)
    temporal, image = (mean(results, "text_to_video", f"flicker_{name}") for name in ("temporal", "image"))
    what = "flicker of still parts, temporal MoVQ"
    yield what, f"{temporal:.2f} of 255", f"below the image MoVQ's {image:.2f}", temporal < image


def _motion(results):
    speeds = numpy.mean([row["speeds"] for row in results["motion"].values()], axis=0)
    text = " < ".join(f"{speed:.2f}" for speed in speeds)
    what = f"speed rises with the motion score, mean {text} pixels a keyframe"
    yield _share(results, "motion", "in_order", what, 0.9)


def _image_to_video(results):
    value = mean(results, "image_to_video", "psnr")
    yield "image to video: first frame against the picture", f"{value:.2f} dB", "at least 25 dB", value >= 25
    what = "image to video: shape and colour persist to the last frame"
    yield _share(results, "image_to_video", "persists", what, 0.9)


def _interpolation(results):
    count = f"({len(results['interpolation'])} clips)"
    value = mean(results, "interpolation", "error")
    yield f"interpolation: position error {count}", f"{value:.2f} pixels", "below 1.5 pixels", value < 1.5
    gain = mean(results, "interpolation", "psnr") - mean(results, "interpolation", "psnr_faded")
    yield f"interpolation: PSNR over that of cross-fading {count}", f"{gain:.2f} dB", "at least 3 dB", gain >= 3


def _no_guidance(results):
    count = len(results["no_guidance"])
    for key, kind in (("colour", world.COLOURS), ("shape", world.SHAPES), ("direction", world.DIRECTIONS)):
        value, chance = mean(results, "no_guidance", key), 1 / len(kind)
        holds = abs(value - chance) < 3 * math.sqrt(chance * (1 - chance) / count)
        what = f"without text guidance: {key} matches ({count} clips)"
        yield what, f"{value:.1%}", f"near chance, {chance:.0%}", holds


def _negative(results):
    without, with_ = mean(results, "negative", "without"), mean(results, "negative", "with")
    what = f"share of a colour with it as negative prompt ({len(results['negative'])} pictures)"
    yield what, f"{with_:.1%}", f"below {without:.1%}", with_ < without


SUMMARIES = (_text_to_video, _motion, _image_to_video, _interpolation, _no_guidance, _negative)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    record.add_options(parser, "benchmark.md")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full number of clips")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    options = parser.parse_args(arguments)
    page = record.Page("benchmark", options.out, options.models, table)
    line = record.command("benchmark", parser, options, ["share"])
    page.run(options, plan(options.share), lambda tasks: run(options.models, tasks, options.workers), line)


if __name__ == "__main__":
    main()
