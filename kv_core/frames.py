"""How frames become the U-Nets' conditions, and how what they predict becomes a clip. Latents are `[1, c, t, h, w]`."""

import torch
from einops import rearrange

from .diffusion import add_noise

CLIP_SECONDS = 5.5  # what the authors show every clip over, whatever its number of frames
MOTION_SCORES = {"low": 1, "medium": 10, "high": 50, "extreme": 100}
KEYFRAMES = 12


def first_frame_condition(first_frame, frames, noise_augmentation, augmentation_noise):
    """Condition latent and mask `[1, 5, frames, h, w]` of the keyframe U-Net.

    The first frame `[1, 4, 1, h, w]`, noised to timestep `noise_augmentation`, and 1 in frame 0; zeros elsewhere.
    """
    condition = torch.zeros(1, 5, frames, *first_frame.shape[-2:], dtype=first_frame.dtype, device=first_frame.device)
    condition[:, :4, :1] = add_noise(first_frame, augmentation_noise.to(first_frame), noise_augmentation)
    condition[:, 4, 0] = 1
    return condition


def neighbours(samples):
    """Left and right frame of every gap: `[1, 4, t, h, w]` -> `[1, 8, t - 1, h, w]`."""
    return torch.cat([samples[:, :, :-1], samples[:, :, 1:]], dim=1)


def between(neighbours, predicted):
    """The interpolation U-Net's 20 channels: the left frame, the three between `[1, 12, g, h, w]`, the right one."""
    left, right = neighbours.chunk(2, dim=1)
    return torch.cat([left, predicted, right], dim=1)


def interleave(samples, predicted):
    """Frames `[1, 4, t, h, w]` and the three in every gap `[1, 12, t - 1, h, w]` in order: `[1, 4, 4t - 3, h, w]`."""
    predicted = rearrange(predicted, "1 (f c) g h w -> 1 c g f h w", f=3)
    gaps = torch.cat([samples[:, :, :-1, None], predicted], dim=3)
    return torch.cat([rearrange(gaps, "1 c g f h w -> 1 c (g f) h w"), samples[:, :, -1:]], dim=2)


def cross_fade(samples):
    """Frames with three blends in every gap, (1 - s) left + s right for s = 1/4, 2/4, 3/4: `[1, c, 4t - 3, h, w]`."""
    left, right = samples[:, :, :-1], samples[:, :, 1:]
    return interleave(samples, torch.cat([torch.lerp(left, right, share) for share in (0.25, 0.5, 0.75)], dim=1))
