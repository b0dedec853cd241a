"""Decoding a chunk of frames in tiles, for pictures whose maps do not fit into memory whole.

A group norm takes its mean and variance from the whole map, so tiles by themselves come out in other colours. Here all
tiles share the statistics of one decode of every second latent pixel, in a quarter of the memory.
"""

import contextlib

import comfy.model_management
import comfy.utils
import torch
from einops import rearrange

LEAST = 8  # latent pixels; smaller tiles cost more than they save


def decode(movq, chunk, tile):
    """Latents `[f, 4, h, w]` -> pixels `[f, 3, 8h, 8w]` on the host's intermediate device.

    tile: sides of the tiles in latent pixels; 0 or no less than both sides: whole. Tiles overlap by a quarter, where
    one fades into the next.
    """
    device = comfy.model_management.intermediate_device()
    if not tile or tile >= max(chunk.shape[2:]):
        return movq.decode(chunk).to(device, torch.float32)
    norms = [module for module in movq.decoder.modules() if isinstance(module, torch.nn.GroupNorm)]
    statistics = _statistics(movq, norms, chunk[..., ::2, ::2])

    def on_tile(tile):
        return rearrange(movq.decode(rearrange(tile, "1 c f h w -> f c h w")), "f c h w -> 1 c f h w").float()

    with _hooks(norms, lambda norm, x, out: _renormed(norm, x, out, *statistics[norm])):
        pixels = comfy.utils.tiled_scale_multidim(
            rearrange(chunk, "f c h w -> 1 c f h w"), on_tile, tile=(len(chunk), tile, tile),
            overlap=(0, tile // 4, tile // 4), upscale_amount=(1, 8, 8), out_channels=3, output_device=device,
        )  # fmt: skip
    return rearrange(pixels, "1 c f h w -> f c h w")


def largest(sides, tile):
    """Height and width, in latent pixels, of the largest map that `decode` makes at once."""
    whole = not tile or tile >= max(sides)
    return sides if whole else [min(side, max(tile, -(-side // 2))) for side in sides]


def _statistics(movq, norms, chunk):
    # Variance and mean `[f, groups]` of what every norm sees.
    seen = {}

    def look(norm, x, out):
        seen[norm] = torch.var_mean(x.reshape(len(x), norm.num_groups, -1).float(), dim=2, correction=0)

    with _hooks(norms, look):
        movq.decode(chunk)
    return seen


def _renormed(norm, x, out, variance, mean):
    # The norm's own result is only a place to write to.
    each = x.shape[1] // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, dim=1) * norm.weight.to(variance)
    shift = norm.bias.to(mean) - mean.repeat_interleave(each, dim=1) * scale
    return torch.addcmul(shift.to(x)[..., None, None], x, scale.to(x)[..., None, None], out=out)


@contextlib.contextmanager
def _hooks(norms, look):
    hooks = [norm.register_forward_hook(lambda norm, args, out: look(norm, args[0], out)) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
