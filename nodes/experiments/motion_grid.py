"""Keyframes for every motion score and noise augmentation of two lists, side by side."""

import torch
from comfy_api.latest import io

from ...kv_core.pictures import sheets as looking
from ...kv_core.sampling.diffusion import SeededNoise
from .. import sockets
from ..host import report, sampling
from ..host.counted import counted
from ..inputs import EXPERIMENTS, steps_input
from ..keyframes import Keyframes
from ..lists import whole_numbers
from .inspect import pictures_input, pictures_of


def shared(*ids):
    """Inputs of Sample Keyframes, as they are there."""
    inputs = {given.id: given for given in Keyframes.define_schema().inputs}
    return [inputs[id] for id in ids]


class MotionGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoMotionGrid",
            display_name="Motion Grid",
            category=EXPERIMENTS,
            description=(
                "Samples keyframes from one first frame and one seed for every motion score and noise augmentation of "
                "two lists, and shows them side by side, as the authors' figure does."
            ),
            search_aliases=["kandinsky", "xy plot", "sweep", "noise augmentation"],
            inputs=[
                *shared("model", "positive", "first_frame", "frames"),
                io.String.Input(
                    "motion_scores",
                    default="1, 10, 50, 100",
                    tooltip="Motion scores, one column each, 0 to 1000, with commas between them.",
                ),
                io.String.Input(
                    "noise_augmentations",
                    default="0, 20, 200",
                    tooltip="Noise put over the first frame, one row each, training steps from 0 to 999, with commas "
                    "between them.",
                ),
                *shared("text_guidance", "image_guidance"),
                steps_input(50),
                *shared("seed", "negative"),
                pictures_input(),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes", is_output_list=True, tooltip="The keyframes of every cell, row by row, as a list."
                ),
                io.Image.Output(
                    "sheets", tooltip="One sheet a frame with all cells and their settings; as a video they all move."
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, first_frame, frames, motion_scores, noise_augmentations,
        text_guidance, image_guidance, steps, seed, negative=None, movq=None,
    ) -> io.NodeOutput:  # fmt: skip
        scores = numbers(motion_scores, "motion_scores", 1000)
        levels = numbers(noise_augmentations, "noise_augmentations", 999)
        frame = sockets.samples_of(first_frame, "frame", sampled=True)
        cells = [(score, level) for level in levels for score in scores]
        clips = []
        for index, (score, level) in enumerate(cells):
            one = counted(model, index * steps, len(cells) * steps)
            with report.measured(f"Motion Grid, motion {score}, noise {level}", first_frame) as history:
                samples = sampling.sample_keyframes(
                    one, positive, negative, frame, frames, score, level, text_guidance, image_guidance, steps,
                    SeededNoise(seed),
                )  # fmt: skip
            clips.append(sockets.latent("keyframes", samples, history=history))
        pictures = torch.cat([pictures_of("Motion Grid", clip["samples"], movq) for clip in clips])
        rows = pictures.unflatten(0, (len(levels), len(scores), frames))
        titles = [f"noise {level}" for level in levels], [f"motion {score}" for score in scores]
        sheets = [looking.table_sheet(rows[:, :, index], *titles) for index in range(frames)]
        return io.NodeOutput(clips, torch.stack(sheets))


def numbers(text, name, most):
    found = whole_numbers(text, f"Motion Grid: in {name}", 0, most)
    if not found:
        raise ValueError(f"Motion Grid needs at least one number in {name}, but it is empty: write one, such as 10.")
    return found
