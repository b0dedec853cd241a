"""How frames become the U-Nets' conditions, and how what they predict becomes a clip. Latents are `[1, c, t, h, w]`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange

from .diffusion import add_noise

MOTION_SCORES = {"low": 1, "medium": 10, "high": 50, "extreme": 100}
KEYFRAMES = 12
CLIP_SECONDS = 5.5  # of a clip as it was sampled, in the original, whatever its number of frames

Frames = dict[int, torch.Tensor]


def frames_condition(
    given: Frames, frames: int, noise_augmentation: int | Sequence[int], augmentation_noise: torch.Tensor
) -> torch.Tensor:
    """Condition latent and mask `[1, 5, frames, h, w]` of the keyframe U-Net.

    given: {index: frame `[1, 4, 1, h, w]`}, 0 among them; each is noised to timestep `noise_augmentation`, one for all
    or one for each of `frames`, and has 1 in the mask. Elsewhere are zeros.
    """
    first = given[0]
    levels = [noise_augmentation] * frames if isinstance(noise_augmentation, int) else noise_augmentation
    condition = torch.zeros(1, 5, frames, *first.shape[-2:], dtype=first.dtype, device=first.device)
    for index, frame in given.items():
        noised = add_noise(frame.to(first), augmentation_noise.to(first), levels[index])
        condition[:, :4, index : index + 1] = noised
        condition[:, 4, index] = 1
    return condition


@dataclass(frozen=True, eq=False)
class FrameCondition:
    """Frames `[1, 4, n, h, w]` given for the places from `position` on; a negative one counts from the clip's end.

    show: to the U-Net as a condition, as it was trained with a first frame. hold: put back at every step, so that they
    come out as they went in.
    """

    samples: torch.Tensor
    position: int
    show: bool
    hold: bool


def place_conditions(
    conditions: Sequence[FrameCondition], first_frame: torch.Tensor, frames: int
) -> tuple[Frames, Frames]:
    """({index: frame to show}, {index: frame to hold}) in a clip of `frames`, each `[1, 4, 1, h, w]`.

    The first frame is shown in its place unless a condition shows another there; of two conditions for one place only
    the later one counts.
    Raises ValueError with the number of the condition that does not fit.
    """
    show: Frames = {}
    hold: Frames = {}
    for number, condition in enumerate(conditions, 1):
        count, size = condition.samples.shape[2], condition.samples.shape[-2:]
        start = condition.position + (frames if condition.position < 0 else 0)
        if not 0 <= start <= frames - count:
            raise ValueError(
                f"Frame condition {number} puts {count} frame(s) at {condition.position}, but the clip has frames 0 to "
                f"{frames - 1}: move it."
            )
        if size != first_frame.shape[-2:]:
            raise ValueError(
                f"Frame condition {number} has frames of {in_pixels(size)} pixels, but the first frame has "
                f"{in_pixels(first_frame.shape[-2:])}: encode them at its size."
            )
        for index, frame in enumerate(condition.samples.split(1, dim=2), start):
            for wanted, places in ((condition.show, show), (condition.hold, hold)):
                places.pop(index, None)
                if wanted:
                    places[index] = frame
    return {0: first_frame, **show}, hold


def in_pixels(size: Sequence[int]) -> str:
    """Height and width of a latent, said as its picture's width and height."""
    return f"{8 * size[1]}x{8 * size[0]}"


def join(first: torch.Tensor, second: torch.Tensor, overlap: int) -> torch.Tensor:
    """Two clips `[1, 4, t, h, w]` as one; the last `overlap` frames of the first fade into the second's first ones."""
    share = torch.arange(1, overlap + 1, device=first.device) / (overlap + 1)
    split = first.shape[2] - overlap
    faded = torch.lerp(first[:, :, split:], second[:, :, :overlap].to(first), share.to(first)[:, None, None])
    return torch.cat([first[:, :, :split], faded, second[:, :, overlap:].to(first)], dim=2)


def neighbours(samples: torch.Tensor) -> torch.Tensor:
    """Left and right frame of every gap: `[1, 4, t, h, w]` -> `[1, 8, t - 1, h, w]`."""
    return torch.cat([samples[:, :, :-1], samples[:, :, 1:]], dim=1)


def between(neighbours: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """The interpolation U-Net's 20 channels: the left frame, the three between `[1, 12, g, h, w]`, the right one."""
    left, right = neighbours.chunk(2, dim=1)
    return torch.cat([left, predicted, right], dim=1)


def interleave(samples: torch.Tensor, predicted: torch.Tensor) -> torch.Tensor:
    """Frames `[1, 4, t, h, w]` and the three in every gap `[1, 12, t - 1, h, w]` in order: `[1, 4, 4t - 3, h, w]`."""
    predicted = rearrange(predicted, "1 (f c) g h w -> 1 c g f h w", f=3)
    gaps = torch.cat([samples[:, :, :-1, None], predicted], dim=3)
    return torch.cat([rearrange(gaps, "1 c g f h w -> 1 c (g f) h w"), samples[:, :, -1:]], dim=2)


def cross_fade(samples: torch.Tensor) -> torch.Tensor:
    """Frames with three blends in every gap, (1 - s) left + s right for s = 1/4, 2/4, 3/4: `[1, c, 4t - 3, h, w]`."""
    left, right = samples[:, :, :-1], samples[:, :, 1:]
    return interleave(samples, torch.cat([torch.lerp(left, right, share) for share in (0.25, 0.5, 0.75)], dim=1))
