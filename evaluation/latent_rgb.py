"""Fit the map from a MoVQ's latent to colours that previews use: `python -m evaluation.latent_rgb FILE`.

Least squares over the cells of 8 x 8 pixels of many pictures, against those cells' mean colours. Prints the map as
kv_core/pictures/latent_rgb.py holds it, and its PSNR on pictures that it was not fitted to. The pictures are the toy
world's, or those of a folder: a MoVQ of photographs wants some hundred photographs.
"""

import argparse
from pathlib import Path

import torch
from PIL import Image

from kv_core.files import checkpoints
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.pictures import images, latent_rgb
from training import world

PICTURES = 400
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def main():
    parser = argparse.ArgumentParser(description="Fits the colours of a MoVQ's latent.")
    parser.add_argument("file", help="an image MoVQ, published or converted")
    parser.add_argument("--images", type=Path, help="a folder of pictures instead of the toy world's")
    parser.add_argument("--size", type=int, default=512, help="width and height they are cut to (default: 512)")
    options = parser.parse_args()
    pictures = folder_pictures(options.images, options.size) if options.images else toy_pictures(PICTURES)
    latents, pixels = encoded(load(options.file), pictures)
    factors, bias = latent_rgb.fit(latents[::2], pixels[::2])
    print(formatted(factors.tolist(), bias.tolist()))
    shown = latent_rgb.to_rgb(latents[1::2], factors.tolist(), bias.tolist()).clamp(-1, 1)  # as a screen shows it
    value = images.psnr(shown, latent_rgb.means(pixels[1::2]), 2, dims=None)
    print(f"{value:.2f} dB on {len(shown)} other pictures")


def load(path):
    """The MoVQ of a file, in float32 on the CPU."""
    checkpoint = checkpoints.open_checkpoint(path, expect="image_movq")
    movq = MoVQ(**checkpoint.config, operations=TorchOperations, dtype=torch.float32)
    movq.load_state_dict({name: value.float() for name, value in checkpoint.tensors.items()})
    return movq.eval().requires_grad_(False)


def toy_pictures(count, seed=0):
    """`count` pictures `[1, 3, 64, 64]` of the toy world."""
    generator = torch.Generator().manual_seed(seed)
    scenes = world.sample_scenes(count, torch.full((count,), 10), generator)
    return world.draw(scenes, torch.zeros(1)).split(1)[:count]


def folder_pictures(folder, size):
    """The pictures `[1, 3, size, size]` of a folder, their centres cut out."""
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    return [images.to_pixels(images.fit(Image.open(path), size, size)) for path in paths]


@torch.no_grad()
def encoded(movq, pictures):
    """Latents `[b, 4, h, w]` and pixels `[b, 3, 8 h, 8 w]`; one picture at a time, in a batch they would mix."""
    pixels = [picture.reshape(1, *picture.shape[-3:]) for picture in pictures]
    return torch.cat([movq.encode(picture) for picture in pixels]), torch.cat(pixels)


def formatted(factors, bias):
    """The map as Python, three decimals: finer than a preview's 8 bits."""

    def row(values):
        return "(" + ", ".join(f"{value:.3f}" for value in values) + ")"

    return "\n".join(["(", f"    ({', '.join(map(row, factors))}),", f"    {row(bias)},", ")"])


if __name__ == "__main__":
    main()
