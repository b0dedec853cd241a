"""Inputs that the sampling nodes and the image nodes share, each worded once."""

from comfy_api.latest import io

from . import sockets

EXPERIMENTS = "Kandinsky Video/experiments"


def model_input(which):
    return io.Model.Input("model", tooltip=f"The {which} U-Net from Load U-Net.")


def positive_input():
    return io.Conditioning.Input("positive", tooltip="The prompt, from Encode Text (Flan-UL2).")


def negative_input():
    return io.Conditioning.Input(
        "negative",
        optional=True,
        tooltip="What to steer away from, from Encode Text (Flan-UL2). Left open, the U-Net's own null embedding is "
        "used, as published.",
    )


def size_input(id, default, which):
    return io.Int.Input(
        id, default=default, min=64, max=4096, step=64,
        tooltip=f"{id.capitalize()} of the {which} in pixels: a multiple of 64, from 64 to 4096.",
    )  # fmt: skip


def check_size(stage, width, height):
    """Raises ValueError for a size between the inputs' steps: the editor rounds it, the server lets it pass."""
    if width % 64 or height % 64:
        raise ValueError(
            f"{stage} needs a width and height that are multiples of 64 pixels, but got {width}x{height}: round them."
        )


def seed_input():
    return io.Int.Input(
        "seed",
        default=0,
        min=0,
        max=0xFFFFFFFFFFFFFFFF,
        control_after_generate=True,
        tooltip="All of this node's noise comes from it, 0 to 2^64 - 1, drawn on the CPU: the same seed gives the same "
        "result on every device.",
    )


# What evaluation/steps.py measured, as docs/tiny/steps.md has it; tests/host/test_steps.py measures it again.
FEWER_STEPS = (
    "Measured on the tiny model, 10 steps of sampler euler with karras sigmas match the prompt as well as 50 published "
    "ones; about the published weights that says nothing certain."
)
FEWER_STEPS_BETWEEN = (
    "Measured on the tiny model, 5 steps of sampler euler place what moves as well as 10 published ones, and come "
    "within 2 dB of their PSNR; about the published weights that says nothing certain."
)


def steps_input(default, fewer=""):
    """fewer: what is known of fewer steps than the default with other samplers."""
    return io.Int.Input(
        "steps",
        default=default,
        min=1,
        max=1000,
        tooltip=f"Denoising steps, 1 to 1000; {default} as published. Time grows in proportion. {fewer}".strip(),
    )


def guidance_input(id, default, effect):
    return io.Float.Input(
        id, default=default, min=0.0, max=30.0, step=0.1, tooltip=f"{effect}. 0 to 30, published {default}."
    )


def sampler_input():
    return io.Sampler.Input(
        "sampler",
        optional=True,
        tooltip="Another sampler than the published one: any of ComfyUI's. Left open, DDPM (published).",
    )


def sigmas_input(spacing):
    return io.Sigmas.Input(
        "sigmas",
        optional=True,
        tooltip="Another schedule than the published one, from Published Schedule or ComfyUI's schedulers; steps is "
        f"then ignored. Left open, {spacing} spacing over steps.",
    )


def schedule_input(what):
    return sockets.Schedule.Input(
        "schedule",
        optional=True,
        tooltip=f"Numbers that change along the clip, from Schedule: {what}. An experiment; left open, all stay as "
        "they are set here.",
    )


def frame_conditions_input():
    return sockets.FrameConditions.Input(
        "frame_conditions",
        optional=True,
        tooltip="More frames that are given than the first, from Frame Condition. An experiment: the published "
        "training knows only a first frame.",
    )


def start_input(strength):
    return io.MultiType.Input(
        "start",
        [sockets.KeyframeLatent, sockets.VideoLatent],
        optional=True,
        tooltip=f"A clip to begin with in the place of noise, of as many frames: video to video, by {strength}. An "
        "experiment.",
    )


def denoise_input():
    return io.Float.Input(
        "denoise",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.01,
        optional=True,
        tooltip="How far the clip may leave start, 0.01 to 1: 1 leaves next to nothing of it, 0.5 its motion and "
        "places. Ignored without start, and where sigmas are connected. The number of steps stays.",
    )
