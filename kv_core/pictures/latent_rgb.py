"""What a latent looks like without decoding it: a linear map of a MoVQ's four channels to red, green and blue.

A latent pixel stands for 8 x 8 pixels of the picture; the map gives about their mean colour, for previews.
"""

import torch
from einops import rearrange, reduce

CELL = 8  # pixels of a picture that a latent pixel stands for

# Rows are latent channels, columns red, green and blue of [-1, 1]; then the bias. Fitted by
# `python -m evaluation.latent_rgb models/vae/kv-tiny/movq.safetensors`, which says how well they fit.
TINY = (
    ((0.984, 0.588, -0.157), (0.090, -0.113, 0.417), (0.200, -0.514, -0.983), (0.046, 0.007, -0.206)),
    (0.051, -0.074, -0.194),
)
# By hand, until someone who has the published MoVQ fits it with the same command: shapes and motion, not true colours.
PUBLISHED = (((0.30, 0.30, 0.30), (0.20, -0.05, -0.20), (-0.05, 0.15, -0.20), (-0.15, -0.15, -0.15)), (0.0, 0.0, 0.0))
PUBLISHED_CHANNELS = 384


def factors(model_channels):
    """Factors `[4][3]` and bias `[3]` for the MoVQ that goes with a U-Net of this width."""
    return PUBLISHED if model_channels == PUBLISHED_CHANNELS else TINY


def to_rgb(latents, factors, bias):
    """Latents `[..., 4, h, w]` -> colours `[..., 3, h, w]`, in [-1, 1] where the fit is good."""
    factors, bias = (torch.tensor(values, dtype=latents.dtype, device=latents.device) for values in (factors, bias))
    return torch.einsum("...chw,cr->...rhw", latents, factors) + bias[:, None, None]


def means(pixels):
    """Pixels `[..., 3, H, W]` -> the mean of what every latent pixel stands for, `[..., 3, H / 8, W / 8]`."""
    return reduce(pixels, "... c (h y) (w x) -> ... c h w", "mean", y=CELL, x=CELL)


def fit(latents, pixels):
    """Least squares: the factors `[4, 3]` and bias `[3]` by which latents `[b, 4, h, w]` best give their pictures.

    pixels: `[b, 3, 8 h, 8 w]` in [-1, 1]. Of all linear maps these have the smallest squared error over all cells.
    """
    inputs = rearrange(latents.double(), "b c h w -> (b h w) c")
    inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    targets = rearrange(means(pixels.double()), "b c h w -> (b h w) c")
    solution = torch.linalg.lstsq(inputs, targets).solution
    return solution[:-1], solution[-1]
