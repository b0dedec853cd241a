"""Inputs that several nodes share, each worded once, with the ranges and defaults of the settings."""

from comfy_api.latest import io

from ..kv_core.sampling.frames import MOTION_SCORES
from ..kv_core.sampling.settings import RANGES, FirstFrame, Interpolation, Keyframes, Run
from . import sockets
from .host.text_encoder import PROJECTIONS

CATEGORY = "Kandinsky Video"
EXPERIMENTS = f"{CATEGORY}/experiments"


def number(id, default, tooltip, **more):
    """A number with its range from RANGES, whole where that is."""
    return ranged(id, default, *RANGES[id], tooltip, **more)


def ranged(id, default, low, high, tooltip, **more):
    """A number from `low` to `high`, which its tooltip says, too."""
    kind = io.Int if isinstance(low, int) else io.Float
    most = "2^64 - 1" if high == 2**64 - 1 else f"{high:g}"
    return kind.Input(id, default=default, min=low, max=high, tooltip=f"{tooltip} {low:g} to {most}.", **more)


def model(which):
    return io.Model.Input("model", tooltip=f"The {which} U-Net from Load U-Net.")


def positive():
    return io.Conditioning.Input("positive", tooltip="The prompt, from Encode Text (Flan-UL2).")


def negative():
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="What to steer away from, from Encode Text (Flan-UL2). If not connected, the U-Net's own null "
        "embedding is used, as in the original.",
    )


def size(id, default, which):
    return number(id, default, f"{id.capitalize()} of the {which} in pixels, a multiple of 64.", step=64)


def first_frame_size():
    return [size(id, getattr(FirstFrame, id), "image, twice the video's,") for id in ("width", "height")]


ALL_NOISE = (
    "All of this node's noise comes from it, drawn on the CPU: the same seed gives the same result on every device."
)


def seed(tooltip=ALL_NOISE):
    return number("seed", Run.seed, tooltip, control_after_generate=True)


# What evaluation/steps.py measured, as docs/tiny/steps.md has it; tests/host/test_steps.py measures it again.
FEWER_STEPS = (
    "On the tiny model, 10 steps of the sampler euler with karras sigmas match the prompt as well as 50 steps of the "
    "default. Not tested with the published weights."
)
FEWER_STEPS_BETWEEN = (
    "On the tiny model, 5 steps of the sampler euler place moving things as well as 10 steps of the default, within "
    "2 dB of their PSNR. Not tested with the published weights."
)


def steps(default, fewer=""):
    """fewer: what is known of fewer steps than the default with other samplers."""
    return number("steps", default, f"Denoising steps. Time grows in proportion. {fewer}".strip())


def guidance(id, default, effect):
    return number(id, default, f"{effect}. Default (as released): {default}.", step=0.1)


def sampler():
    return io.Sampler.Input(
        "sampler", optional=True, tooltip="Any ComfyUI sampler. If not connected: DDPM, as in the original."
    )


def sigmas(spacing):
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Noise levels from Published Schedule or any ComfyUI scheduler; steps is then ignored. If not "
        f"connected: {spacing} spacing over steps, as in the original.",
    )


def curves(what):
    return sockets.Curves.Input(
        "curves",
        optional=True,
        tooltip=f"Values that change along the clip, from Parameter Curve: {what}. Experimental.",
    )


def frame_conditions():
    return sockets.FrameConditions.Input(
        "frame_conditions",
        optional=True,
        tooltip="Additional conditioning frames besides the first, from Frame Condition. Experimental: the model was "
        "trained with a first frame only.",
    )


def init_video(strength):
    return io.MultiType.Input(
        "init_video",
        [sockets.KeyframeLatent, sockets.VideoLatent],
        optional=True,
        tooltip=f"Initial clip for video-to-video, with the same number of frames; {strength} sets how much of it "
        "changes. Experimental.",
    )


def denoise():
    return number(
        "denoise",
        Run.denoise,
        "Denoising strength: 1.0 ignores the initial clip, 0.5 keeps its motion and layout. Ignored without "
        "init_video, and where sigmas are connected. The number of steps does not change.",
        step=0.01,
        optional=True,
    )


def clip():
    """What describes a clip of keyframes."""
    return [
        model("keyframe"),
        positive(),
        sockets.FrameLatent.Input(
            "first_frame",
            tooltip="The image the clip begins with, from Encode Image (MoVQ). Its width and height are multiples of "
            "64 pixels, and the clip has the same size.",
        ),
        number(
            "frames",
            Keyframes.frames,
            "Number of keyframes; the model was trained on 12. Memory and time grow in proportion.",
        ),
        io.Combo.Input(
            "motion",
            options=[*MOTION_SCORES, "custom"],
            default="medium",
            tooltip="Amount of motion; low, medium, high and extreme are scores 1, 10, 50, 100. custom uses "
            "motion_score.",
        ),
        number(
            "motion_score",
            Keyframes.motion_score,
            "Amount of motion if motion is custom: 1 is almost still, 100 is the highest published value.",
        ),
        number(
            "noise_augmentation",
            Keyframes.noise_augmentation,
            "Noise added to the first frame, as a training step. Default (as released): 20. Higher values let the clip "
            "depart further from it.",
        ),
        guidance("text_guidance", Keyframes.text_guidance, "How strongly the clip follows the prompt"),
        guidance("image_guidance", Keyframes.image_guidance, "How strongly the clip follows the first frame"),
    ]


def gaps():
    """Which gaps are filled, and how."""
    return [
        model("interpolation"),
        positive(),
        sequence("samples", "Keyframes, or a video that was interpolated before; at least 2 frames."),
        io.Combo.Input(
            "skip_frames",
            options=["auto", *map(str, range(int(RANGES["skip_frames"][1]) + 1))],
            default="auto",
            tooltip="Frames missing per gap, as told to the U-Net. auto, as in the original: 3 between keyframes, 1 in "
            "a video that was interpolated before.",
        ),
        guidance("guidance", Interpolation.guidance, "How strongly new frames follow the prompt and their neighbours"),
    ]


def sequence(id, tooltip):
    return io.MultiType.Input(id, [sockets.KeyframeLatent, sockets.VideoLatent], tooltip=tooltip)


def any_latent(id, tooltip):
    return io.MultiType.Input(id, list(sockets.LATENTS.values()), tooltip=tooltip)


def projection():
    return io.Combo.Input(
        "projection",
        options=list(PROJECTIONS),
        default="base",
        tooltip="Which projection follows the encoder. base: the original's choice for every stage; interpolation: the "
        "one trained for Interpolate Frames.",
    )


def text_encoder():
    return sockets.TextEncoder.Input("text_encoder", tooltip="The encoder from Load Text Encoder (Flan-UL2).")


def image_movq():
    return sockets.MoVQ.Input("movq", tooltip="The image MoVQ from Load MoVQ.")


def preview_movq():
    return sockets.MoVQ.Input(
        "movq",
        optional=True,
        tooltip="The image MoVQ from Load MoVQ, to decode the images. If not connected, every latent pixel is shown as "
        "a square in preview colours, which takes no time.",
    )


def tile_size():
    return ranged(
        "tile_size",
        0,
        0,
        4096,
        "Tile size in pixels. Tiles use less memory; colours shift slightly (27 to 32 dB PSNR on the tiny model). 0: "
        "no tiles. Tiling turns on automatically when memory runs out.",
        step=64,
        optional=True,
        advanced=True,
    )
