"""The pack's own sockets: what travels between its nodes, and the checks at every node's door.

A latent is a dict like the host's LATENT: `samples` float `[1, 4, F, h, w]` (h, w = pixels / 8), and `kind`, which
says what its frames are; keyframes and videos also have `frame_rate`, the pace that cutting, joining and interpolating
keep.
"""

import torch
from comfy_api.latest import io
from einops import rearrange

from ..kv_core.sampling.frames import CLIP_SECONDS

TextEncoder = io.Custom("KV_TEXT_ENCODER")
MoVQ = io.Custom("KV_MOVQ")
VideoMoVQ = io.Custom("KV_VIDEO_MOVQ")
Drawn = io.Custom("CURVE")  # the host's own, as a socket without its widget
FrameConditions = io.Custom("KV_FRAME_CONDITIONS")  # a tuple of kv_core.sampling.frames.FrameCondition
Curves = io.Custom("KV_CURVES")  # a tuple of kv_core.sampling.curves.ParameterCurve
FrameLatent = io.Custom("KV_FRAME_LATENT")  # one image: samples [1, 4, 1, h, w]
KeyframeLatent = io.Custom("KV_KEYFRAME_LATENT")  # keyframes: samples [1, 4, F, h, w]
VideoLatent = io.Custom("KV_VIDEO_LATENT")  # interpolated frames: samples [1, 4, 4F - 3, h, w]
LATENTS = {"frame": FrameLatent, "keyframes": KeyframeLatent, "video": VideoLatent}

# An output whose kind a widget chooses; the node behind it checks what really came.
AnyLatent = io.Custom(",".join(latent.io_type for latent in LATENTS.values()))

_CALLED = {"frame": "the latent of one image", "keyframes": "keyframes", "video": "an interpolated video"}
_MAKERS = {
    "frame": "Encode Image (MoVQ) or Sample First Frame (Kandinsky 3)",
    "keyframes": "Sample Keyframes (U-Net3D)",
    "video": "Interpolate Frames (U-Net3D)",
}

LATENT_CHANNELS = 4
SIZE_STEP = 8  # the U-Nets halve height and width three times


def latent(kind, samples, frame_rate=None):
    """Wraps samples `[1, 4, F, h, w]` as a latent of `kind`; by default they play for CLIP_SECONDS."""
    if kind == "frame":
        return {"samples": samples, "kind": kind}
    return {"samples": samples, "kind": kind, "frame_rate": frame_rate or samples.shape[2] / CLIP_SECONDS}


def interpolated(samples, before):
    """The latent of a video made of the latent `before`, which plays for as long."""
    frames = before["samples"].shape[2]
    return latent("video", samples, frame_rate_of(before) * samples.shape[2] / frames)


def frame_rate_of(given):
    """Frames per second at which keyframes or a video play."""
    return given.get("frame_rate") or given["samples"].shape[2] / CLIP_SECONDS


def samples_of(latent, *kinds, for_unet=False, least=1):
    """The samples of a latent, checked: of one of `kinds`, `least` frames or more.

    With `for_unet` its height and width must suit the U-Nets too.

    Raises ValueError with one sentence: what came, what was expected, which node makes it.
    """
    wanted = " or ".join(f"{_CALLED[kind]} (made by {_MAKERS[kind]})" for kind in kinds)
    if not isinstance(latent, dict) or not torch.is_tensor(latent.get("samples")):
        raise ValueError(f"Expected {wanted}, but got {type(latent).__name__} without samples.")
    samples, kind = latent["samples"], latent.get("kind")
    if kind not in kinds:
        came = f"{_CALLED[kind]} (made by {_MAKERS[kind]})" if kind in _CALLED else "a plain LATENT"
        raise ValueError(f"Expected {wanted}, but got {came}.")
    if samples.ndim != 5 or samples.shape[:2] != (1, LATENT_CHANNELS) or (kind == "frame" and samples.shape[2] != 1):
        frames = "1" if kind == "frame" else "F"
        raise ValueError(
            f"Expected {wanted} with samples of shape [1, {LATENT_CHANNELS}, {frames}, h, w], but got "
            f"{list(samples.shape)}."
        )
    if samples.shape[2] < least:
        raise ValueError(f"Expected {wanted} with at least {least} frames, but got {samples.shape[2]}.")
    height, width = samples.shape[-2:]
    if for_unet and (height % SIZE_STEP or width % SIZE_STEP):
        raise ValueError(
            f"Expected {wanted} whose width and height are multiples of {8 * SIZE_STEP} pixels, but got "
            f"{8 * width}x{8 * height}: encode the image at such a size."
        )
    if not torch.isfinite(samples).all():
        raise ValueError(
            f"Expected {wanted}, but its samples hold NaN or infinite values: check the node that made them."
        )
    return samples


def to_latent(given):
    """Any KV latent as the host's LATENT; the samples stay `[1, 4, F, h, w]`."""
    return {**given, "samples": samples_of(given, *LATENTS)}


def from_latent(given, kind):
    """The host's LATENT as a KV latent of `kind`.

    Takes `[B, 4, F, h, w]` and `[B, 4, h, w]`: the host's batch nodes join on the first axis, so items of a batch
    become frames, in order.
    """
    samples = given["samples"]
    if samples.ndim == 4:
        samples = samples[:, :, None]
    if samples.ndim != 5 or samples.shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"Expected a LATENT of {LATENT_CHANNELS} channels, [frames, {LATENT_CHANNELS}, h, w] or "
            f"[1, {LATENT_CHANNELS}, frames, h, w], but got {list(given['samples'].shape)}: only latents of a "
            "Kandinsky MoVQ can be used here."
        )
    samples = rearrange(samples, "b c f h w -> 1 c (b f) h w")
    if kind == "frame" and samples.shape[2] != 1:
        raise ValueError(f"Expected one frame for kind 'frame', but got {samples.shape[2]}: choose 'keyframes'.")
    return latent(kind, samples, given.get("frame_rate"))
