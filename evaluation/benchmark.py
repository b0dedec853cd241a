"""Measures whether the tiny model's clips show what was asked for: `python -m evaluation.benchmark`.

Every clip is made by kv_core's pipeline at the published defaults and judged by `world.read`, from pixels alone.
Prompts and seeds are unseen: their combinations of shape, colour, background and direction are never trained on.
"""

import argparse
import json
import math
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy
import torch
from tqdm import tqdm

from kv_core.pictures.images import to_images, to_pixels
from kv_core.pipeline import load_pipeline
from kv_core.sampling.frames import MOTION_SCORES
from training import world
from training.trainer import SIDE_BY_SIDE

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
UNCONDITIONAL = -1.0  # of first frame guidance: (w + 1) conditional - w unconditional
EARLY = 4  # keyframes that a shape can move for at any speed before it may reach the edge


class Judge:
    """The pipeline of the tiny model, and its stages at the published defaults for scenes of the toy world."""

    def __init__(self, models):
        self.pipe = load_pipeline({part: Path(models) / name for part, name in FILES.items()}, "cpu")

    def first_frame(self, texts, seed, guidance=DEFAULTS["guidance"]):
        """A drawn first frame, as the Pillow image that image to video takes."""
        size = 2 * world.SIZE
        return self.pipe.decode_image(self.pipe.first_frame(texts, size, size, guidance, STEPS[0], seed))

    def keyframes(self, texts, image, seed, motion="medium", text_guidance=DEFAULTS["text"]):
        return self.pipe.keyframes(
            texts,
            self.pipe.encode_image(image, world.SIZE, world.SIZE),
            MOTION_SCORES[motion],
            DEFAULTS["augmentation"],
            text_guidance,
            DEFAULTS["image"],
            STEPS[1],
            seed,
        )

    def interpolate(self, texts, latents, seed):
        return self.pipe.interpolate(texts, latents, 3, DEFAULTS["interpolation"], STEPS[2], seed)

    def pixels(self, latents):
        """Latents `[1, 4, t, 8, 8]` -> frames `[t, 3, 64, 64]` in [-1, 1]."""
        return bytes_to_pixels(self.pipe.decode_video(latents))


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


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of pixels in [-1, 1], over the last three axes."""
    return -10 * (((a - b) / 2) ** 2).mean((-3, -2, -1)).clamp(min=1e-10).log10()


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
        "psnr": psnr(pixels[0], to_pixels(image)[0]).item(),
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
        "psnr": psnr(pixels[new], truth[new]).mean().item(),
        "psnr_faded": psnr(faded, truth[new]).mean().item(),
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
    "text_to_video": (text_to_video, 200),
    "motion": (motion, 60),
    "image_to_video": (image_to_video, 60),
    "interpolation": (interpolation, 40),
    "no_guidance": (no_guidance, 100),
    "negative": (negative, 120),
}


def counts_of(share, names=MEASUREMENTS):
    """{measurement: how many} for a share of the full number."""
    return {name: max(1, round(MEASUREMENTS[name][1] * share)) for name in names}


def run(models, counts, workers=1, progress=True):
    """{measurement: a list of what its function gave} for {measurement: how many}."""
    tasks = [(name, index) for name, count in counts.items() for index in range(count)]
    results = {name: [] for name in counts}
    if workers == 1:
        judge = Judge(models)
        found = (_measure(judge, task) for task in tasks)
    else:
        os.environ.update(SIDE_BY_SIDE)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), _begin, (models,))
        found = pool.map(_measure_there, tasks)
    for (name, _), result in tqdm(zip(tasks, found), total=len(tasks), disable=not progress):
        results[name].append(result)
    return results


def _begin(models):
    global _judge
    torch.set_num_threads(1)
    _judge = Judge(models)


def _measure_there(task):
    return _measure(_judge, task)


@torch.no_grad()
def _measure(judge, task):
    name, index = task
    return MEASUREMENTS[name][0](judge, index)


def summary(results):
    """Rows (what, measured, wanted, holds) of the table."""
    rows = []

    def mean(name, key):
        return float(numpy.mean([row[key] for row in results[name] if key in row]))

    def share(name, key, what, floor):
        value = mean(name, key)
        rows.append((f"{what} ({len(results[name])} clips)", f"{value:.1%}", f"at least {floor:.0%}", value >= floor))

    def number(what, value, unit, holds, wanted):
        rows.append((what, f"{value:.2f} {unit}".strip(), wanted, holds))

    if "text_to_video" in results:
        for key, floor in (("colour", 0.95), ("shape", 0.9), ("direction", 0.85), ("all", 0.8)):
            what = "all three match" if key == "all" else f"{key} matches"
            share("text_to_video", key, f"text to video: {what}", floor)
        temporal, image = mean("text_to_video", "flicker_temporal"), mean("text_to_video", "flicker_image")
        number("flicker of still parts, temporal MoVQ", temporal, "of 255", temporal < image, f"below {image:.2f}")
    if "motion" in results:
        speeds = numpy.mean([row["speeds"] for row in results["motion"]], axis=0)
        text = " < ".join(f"{speed:.2f}" for speed in speeds)
        share("motion", "in_order", f"speed rises with the motion score, mean {text} pixels a keyframe", 0.9)
    if "image_to_video" in results:
        value = mean("image_to_video", "psnr")
        number("image to video: first frame against the picture", value, "dB", value >= 25, "at least 25 dB")
        share("image_to_video", "persists", "image to video: shape and colour persist to the last frame", 0.9)
    if "interpolation" in results:
        value = mean("interpolation", "error")
        number("interpolation: position error", value, "pixels", value < 1.5, "below 1.5 pixels")
        gain = mean("interpolation", "psnr") - mean("interpolation", "psnr_faded")
        number("interpolation: over cross-fading", gain, "dB", gain >= 3, "at least 3 dB")
    if "no_guidance" in results:
        for key, kind in (("colour", world.COLOURS), ("shape", world.SHAPES), ("direction", world.DIRECTIONS)):
            value, chance = mean("no_guidance", key), 1 / len(kind)
            holds = abs(value - chance) < 3 * math.sqrt(chance * (1 - chance) / len(results["no_guidance"]))
            wanted = f"near chance, {chance:.0%}"
            rows.append(
                (
                    f"without text guidance: {key} matches ({len(results['no_guidance'])} clips)",
                    f"{value:.1%}",
                    wanted,
                    holds,
                )
            )
    if "negative" in results:
        without, with_ = mean("negative", "without"), mean("negative", "with")
        rows.append(
            (
                f"share of a colour with it as negative prompt ({len(results['negative'])} pictures)",
                f"{with_:.1%}",
                f"below {without:.1%}",
                with_ < without,
            )
        )
    return rows


def table(rows):
    lines = ["| measured | result | wanted | holds |", "| --- | --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {a} | {b} | {c} | {'yes' if holds else 'no'} |" for a, b, c, holds in rows)])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with the tiny model's files")
    parser.add_argument("--share", type=float, default=1.0, help="share of the full number of clips")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS))
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one a core)")
    parser.add_argument("--out", type=Path, help="JSON file for every single result")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    counts = counts_of(options.share, options.only)
    results = run(options.models, counts, options.workers)
    print(table(summary(results)))
    print(f"{sum(counts.values())} measurements in {(time.monotonic() - start) / 60:.1f} minutes.")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
