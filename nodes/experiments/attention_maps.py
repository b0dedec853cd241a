"""Where the U-Net attends to each word."""

import torch
from comfy_api.latest import io

from ...kv_core.pictures import sheets
from ...kv_core.sampling.diffusion import SeededNoise
from .. import inputs, pictures, sockets
from ..host import attention_maps
from ..host.prompts import prompt_of

LEVELS = ["all", "1", "2", "3"]


class AttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoAttentionMaps",
            display_name="Attention Maps",
            category=inputs.EXPERIMENTS,
            description="Shows where in the frames the keyframe U-Net attends to each word of a prompt, from one "
            "forward pass over the given frames with noise.",
            search_aliases=["kandinsky", "cross-attention", "heat map", "words"],
            inputs=[
                inputs.model("keyframe"),
                io.Conditioning.Input("positive", tooltip="The prompt whose words are shown, from Encode Text."),
                io.MultiType.Input(
                    "samples",
                    [sockets.FrameLatent, sockets.KeyframeLatent],
                    tooltip="The frames the U-Net gets: keyframes, or a first frame.",
                ),
                inputs.ranged(
                    "noise_level",
                    500,
                    0,
                    999,
                    "Noise added to the frames, as a training step: at high noise the U-Net decides the layout, at "
                    "low noise the details.",
                ),
                io.Combo.Input(
                    "level",
                    options=LEVELS,
                    default="all",
                    tooltip="Level whose attention is shown: 1 has half the latent's width and height, 2 a quarter, 3 "
                    "an eighth; all: the mean of all levels. The tiny U-Net has 1 and 2.",
                ),
                inputs.seed(),
                inputs.preview_movq(),
            ],
            outputs=[
                io.Image.Output(
                    "sheet",
                    tooltip="One row per word, one column per frame. Beside each word stands its share of all "
                    "attention; every row is scaled to its own range.",
                )
            ],
        )

    @classmethod
    def execute(cls, model, positive, samples, noise_level, level, seed, movq=None) -> io.NodeOutput:
        frames = sockets.samples_of(samples, "frame", "keyframes", for_unet=True)
        maps = attention_maps.attention_maps(model, positive, frames, noise_level, SeededNoise(seed))
        if level != "all" and int(level) not in maps:
            raise ValueError(
                f"Attention Maps: this U-Net has no attention to the text at level {level}, only at "
                f"{', '.join(map(str, maps))}: choose one of these."
            )
        chosen = [one for number, one in maps.items() if level in ("all", str(number))]
        chosen = [sheets.enlarged(one, frames.shape[3] // one.shape[1]) for one in chosen]
        words = by_word(torch.stack(chosen).mean(0), positive)
        shown = pictures.show("Attention Maps", frames, movq)
        titles = [f"{word} {100 * weights.mean():.0f}%" for word, weights in words]
        rows = torch.stack([overlaid(shown, weights) for _, weights in words])
        columns = list(map(str, range(len(shown))))
        return io.NodeOutput(sheets.table_sheet(torch.cat([shown[None], rows]), ["", *titles], columns)[None])


def by_word(maps, positive):
    """(word, weights `[t, h, w]`) for each word of the first entry of a CONDITIONING, the sum over its tokens."""
    prompt = prompt_of(positive[0][1])
    parts = maps.split([count for _, count in prompt.words], dim=-1)
    return [(word, part.sum(-1)) for (word, _), part in zip(prompt.words, parts)]


def overlaid(pictures, weights):
    """Pictures `[t, H, W, 3]` in grey under the heat of `weights`, from their least to their most."""
    span = (weights.max() - weights.min()).clamp(min=1e-6)
    heat = sheets.heat(sheets.enlarged((weights - weights.min()) / span))
    return 0.35 * pictures.mean(-1, keepdim=True) + 0.65 * heat
