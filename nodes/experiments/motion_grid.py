"""Keyframes for every motion score and noise augmentation of two lists, side by side."""

from dataclasses import replace

import torch
from comfy_api.latest import io

from ...kv_core.pictures import sheets
from ...kv_core.sampling.curves import whole_numbers
from ...kv_core.sampling.settings import RANGES, Keyframes, Run
from .. import inputs, pictures, sockets
from ..host import guiders, progress, sampling


class MotionGrid(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        clip = {given.id: given for given in inputs.clip()}
        return io.Schema(
            node_id="KandinskyVideoMotionGrid",
            display_name="Motion Grid",
            category=inputs.EXPERIMENTS,
            description="Samples keyframes from one first frame and one seed for every motion score and noise "
            "augmentation of two lists, and shows them side by side.",
            search_aliases=["kandinsky", "xy plot", "sweep", "noise augmentation"],
            inputs=[
                *(clip[id] for id in ("model", "positive", "first_frame", "frames")),
                io.String.Input(
                    "motion_scores",
                    default="1, 10, 50, 100",
                    tooltip="Motion scores from 0 to 1000, separated by commas; one column each.",
                ),
                io.String.Input(
                    "noise_augmentations",
                    default="0, 20, 200",
                    tooltip="Noise added to the first frame, training steps from 0 to 999, separated by commas; one "
                    "row each.",
                ),
                clip["text_guidance"],
                clip["image_guidance"],
                inputs.steps(50),
                inputs.seed(),
                inputs.negative(),
                inputs.preview_movq(),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes", is_output_list=True, tooltip="The keyframes of every cell, row by row, as a list."
                ),
                io.Image.Output(
                    "sheets",
                    tooltip="One sheet per frame with all cells and their settings; as a video, they all move.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, model, positive, first_frame, motion_scores, noise_augmentations, steps, seed, negative=None, movq=None,
        **given,
    ) -> io.NodeOutput:  # fmt: skip
        scores, levels = numbers("motion_score", motion_scores), numbers("noise_augmentation", noise_augmentations)
        frame = sockets.samples_of(first_frame, "frame", for_unet=True)
        prompts, settings, run = guiders.Prompts(positive, negative), Keyframes(**given), Run(steps, seed)
        cells, clips = [(score, level) for level in levels for score in scores], []
        for index, (score, level) in enumerate(cells):
            cell = replace(settings, motion_score=score, noise_augmentation=level)
            counting = progress.step_offset(model, index * steps, len(cells) * steps)
            guided = guiders.keyframes(counting, prompts, frame, cell, run.noise, "Motion Grid")
            with progress.measured(f"Motion Grid, motion {score}, noise {level}"):
                clips.append(sockets.latent("keyframes", sampling.run(guided, run)))
        shown = torch.cat([pictures.show("Motion Grid", clip["samples"], movq) for clip in clips])
        rows = shown.unflatten(0, (len(levels), len(scores), settings.frames))
        titles = [f"noise {level}" for level in levels], [f"motion {score}" for score in scores]
        return io.NodeOutput(
            clips, torch.stack([sheets.table_sheet(rows[:, :, index], *titles) for index in range(settings.frames)])
        )


def numbers(name, text):
    low, high = RANGES[name]
    found = whole_numbers(text, f"{name}s", low, high)
    if not found:
        raise ValueError(f"Motion Grid needs at least one number in {name}s, but it is empty: write one, such as 10.")
    return found
