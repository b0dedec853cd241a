"""Latent clips of the toy world, encoded once by the trained MoVQ and kept on disk as half-precision tensors."""

import os

import torch
from safetensors.torch import load_file, save_file

from . import world

MOTION_SCORES = (1, 100)  # drawn evenly in the logarithm, as the named ones lie


def make(path, movq, clips, seed=0, chunk=50):
    """Writes `clips` of every kind to `path`, atomically; returns the tensors. Does nothing where the file is there.

    keyframes `[n, 12, 4, 8, 8]` and first_frame `[n, 4, 16, 16]` (drawn at twice the size) of the same scenes; medium
    and high `[n, 45, 4, 8, 8]`, clips at the two rates of interpolation; the scenes' numbers, and motion_score `[n]`.
    """
    if not path.is_file():
        generator = torch.Generator().manual_seed(seed)
        parts = [_chunk(movq, min(chunk, clips - start), generator) for start in range(0, clips, chunk)]
        tensors = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        partial = path.with_suffix(".partial")
        save_file(tensors, partial)
        os.replace(partial, path)
    return load_file(path)


@torch.no_grad()
def _chunk(movq, count, generator):
    low, high = (torch.tensor(float(score)).log() for score in MOTION_SCORES)
    motion = (low + (high - low) * torch.rand(count, generator=generator)).exp().round()
    scenes = world.sample_scenes(count, motion, generator)
    start = torch.rand(1, generator=generator) * (world.KEYFRAMES - 4)  # 45 frames of the high rate span 2.75 keyframes

    def encode(times, size=world.SIZE):
        latents = movq.encode(world.draw(scenes, times, size).flatten(0, 1))
        return latents.unflatten(0, (count, -1)).half()

    return {
        "keyframes": encode(torch.arange(12.0)),
        "first_frame": encode(torch.zeros(1), 2 * world.SIZE)[:, 0],
        "medium": encode(torch.arange(45.0) / 4),
        "high": encode(start + torch.arange(45.0) / 16),
        "motion_score": motion,
        **{f"scene.{name}": value for name, value in vars(scenes).items()},
    }


def scenes(tensors, rows):
    return world.Scenes(**{
        name.removeprefix("scene."): value[rows] for name, value in tensors.items() if name.startswith("scene.")
    })  # fmt: skip
