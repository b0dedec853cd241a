"""Latent clips of the toy world, encoded once by the trained MoVQ and stored on disk in half precision."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from kv_core.files.conversion import appearing
from kv_core.networks.movq import MoVQ

from . import world

CLIPS_AT_ONCE = 50
IMAGES_AT_ONCE = 16  # in the encoder; more do not fit a core's cache
FRAMES_AFTER = 45  # interpolation of twelve keyframes


def keyframe_clips(folder: Path, movq: Callable[[], MoVQ], count: int) -> dict[str, torch.Tensor]:
    """keyframes `[n, 12, 4, 8, 8]`, first_frame `[n, 4, 16, 16]` (drawn at twice the size), motion_score `[n]` and the
    scenes' numbers. Reads the file in `folder`; makes it if it is missing, with the encoder that movq() returns."""

    def chunk(encode, scenes, generator):
        first = encode(world.draw(scenes, torch.zeros(1), 2 * world.SIZE))[:, 0]
        return {"keyframes": encode(world.draw(scenes, torch.arange(float(world.KEYFRAMES)))), "first_frame": first}

    return _stored(folder / "keyframes.safetensors", movq, count, 1, chunk)


def interpolation_clips(folder: Path, movq: Callable[[], MoVQ], count: int) -> dict[str, torch.Tensor]:
    """medium and high `[n, 45, 4, 8, 8]`, clips at the two interpolation rates; otherwise as keyframe_clips."""

    def chunk(encode, scenes, generator):
        steps = torch.arange(float(FRAMES_AFTER))
        start = torch.rand(1, generator=generator) * (world.KEYFRAMES - 4)  # at the high rate they span 2.75 keyframes
        medium, high = (encode(world.draw(scenes, times)) for times in (steps / 4, start + steps / 16))
        return {"medium": medium, "high": high}

    return _stored(folder / "interpolation.safetensors", movq, count, 2, chunk)


def scenes(tensors: dict[str, torch.Tensor], rows: torch.Tensor) -> world.Scenes:
    """The scenes of these rows of stored clips."""
    return world.Scenes(
        **{name.removeprefix("scene."): value[rows] for name, value in tensors.items() if name.startswith("scene.")}
    )


def sample_motion(count: int, generator: torch.Generator) -> torch.Tensor:
    """Motion scores `[count]` from 1 to 100, uniform in the logarithm, as the named ones are spaced."""
    return (100 ** torch.rand(count, generator=generator)).round()


@torch.no_grad()
def _stored(path, movq, count, seed, chunk):
    if not path.is_file():
        movq, generator = movq(), torch.Generator().manual_seed(seed)

        def encode(pixels):
            images = pixels.flatten(0, 1).to(next(movq.parameters()).device).split(IMAGES_AT_ONCE)
            return torch.cat([movq.encode(few).half().cpu() for few in images]).unflatten(0, pixels.shape[:2])

        parts = []
        for start in tqdm(range(0, count, CLIPS_AT_ONCE), desc=path.stem + " clips"):
            motion = sample_motion(min(CLIPS_AT_ONCE, count - start), generator)
            drawn = world.sample_scenes(len(motion), motion, generator)
            numbers = {f"scene.{name}": value for name, value in vars(drawn).items()}
            parts.append({**chunk(encode, drawn, generator), **numbers, "motion_score": motion})
        with appearing(path) as partial:
            save_file({name: torch.cat([part[name] for part in parts]) for name in parts[0]}, partial)
    return load_file(path)
