"""Latent clips of the toy world, encoded once by the trained MoVQ and kept on disk as half-precision tensors."""

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from kv_core.files.conversion import appearing

from . import world

CHUNK = 50  # clips drawn at once
IMAGES = 16  # images encoded at once: more do not fit a core's cache
FRAMES_AFTER = 45  # interpolation of twelve keyframes


def keyframe_clips(folder, movq, count):
    """keyframes `[n, 12, 4, 8, 8]`, first_frame `[n, 4, 16, 16]` (drawn at twice the size), motion_score `[n]` and the
    scenes' numbers; from the file in `folder`, made first where it is missing. movq() gives the encoder."""

    def chunk(encode, scenes, generator):
        first = encode(world.draw(scenes, torch.zeros(1), 2 * world.SIZE))[:, 0]
        return {"keyframes": encode(world.draw(scenes, torch.arange(float(world.KEYFRAMES)))), "first_frame": first}

    return _made(folder / "keyframes.safetensors", movq, count, 1, chunk)


def interpolation_clips(folder, movq, count):
    """medium and high `[n, 45, 4, 8, 8]`, clips at the two rates of interpolation, and the rest as keyframe_clips."""

    def chunk(encode, scenes, generator):
        steps = torch.arange(float(FRAMES_AFTER))
        start = torch.rand(1, generator=generator) * (world.KEYFRAMES - 4)  # at the high rate they span 2.75 keyframes
        medium, high = (encode(world.draw(scenes, times)) for times in (steps / 4, start + steps / 16))
        return {"medium": medium, "high": high}

    return _made(folder / "interpolation.safetensors", movq, count, 2, chunk)


def scenes(tensors, rows):
    return world.Scenes(
        **{name.removeprefix("scene."): value[rows] for name, value in tensors.items() if name.startswith("scene.")}
    )


def sample_motion(count, generator):
    """Motion scores `[count]` from 1 to 100, drawn evenly in the logarithm, as the named ones lie."""
    return (100 ** torch.rand(count, generator=generator)).round()


@torch.no_grad()
def _made(path, movq, count, seed, chunk):
    if not path.is_file():
        movq, generator = movq(), torch.Generator().manual_seed(seed)

        def encode(pixels):
            images = pixels.flatten(0, 1).to(next(movq.parameters()).device).split(IMAGES)
            return torch.cat([movq.encode(few).half().cpu() for few in images]).unflatten(0, pixels.shape[:2])

        parts = []
        for start in tqdm(range(0, count, CHUNK), desc=path.stem + " clips"):
            motion = sample_motion(min(CHUNK, count - start), generator)
            drawn = world.sample_scenes(len(motion), motion, generator)
            numbers = {f"scene.{name}": value for name, value in vars(drawn).items()}
            parts.append({**chunk(encode, drawn, generator), **numbers, "motion_score": motion})
        with appearing(path) as partial:
            save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, partial)
    return load_file(path)
