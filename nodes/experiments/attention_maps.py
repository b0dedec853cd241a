"""Where the U-Net looks at which word."""

import torch
from comfy_api.latest import io

from ...kv_core.pictures import sheets as looking
from ...kv_core.sampling.diffusion import SeededNoise
from .. import sockets
from ..host import attention_maps
from ..inputs import EXPERIMENTS, model_input, seed_input
from .inspect import pictures_input, pictures_of

LEVELS = ["all", "1", "2", "3"]


class AttentionMaps(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoAttentionMaps",
            display_name="Attention Maps",
            category=EXPERIMENTS,
            description=(
                "Shows for each word of a prompt where in the frames the keyframe U-Net looks at it, from one forward "
                "pass over given frames with noise."
            ),
            search_aliases=["kandinsky", "cross-attention", "heat map", "words"],
            inputs=[
                model_input("keyframe"),
                io.Conditioning.Input("positive", tooltip="The prompt whose words are shown, from Encode Text."),
                io.MultiType.Input(
                    "samples",
                    [sockets.FrameLatent, sockets.KeyframeLatent],
                    tooltip="The frames that are looked at: keyframes, or a first frame.",
                ),
                io.Int.Input(
                    "noise_level",
                    default=500,
                    min=0,
                    max=999,
                    tooltip="Noise put over the frames, as a training step from 0 to 999: at high ones the U-Net "
                    "places things, at low ones it finishes them.",
                ),
                io.Combo.Input(
                    "level",
                    options=LEVELS,
                    default="all",
                    tooltip="Whose attention is shown: 1 has half the latent's width and height, 2 a quarter, 3 an "
                    "eighth; all: the mean of all that there are. The tiny U-Net has 1 and 2.",
                ),
                seed_input(),
                pictures_input(),
            ],
            outputs=[
                io.Image.Output(
                    "sheet",
                    tooltip="One row a word, one column a frame. Beside the word stands its share of all attention; "
                    "each row is scaled to its own least and most.",
                ),
            ],
        )

    @classmethod
    def execute(cls, model, positive, samples, noise_level, level, seed, movq=None) -> io.NodeOutput:
        frames = sockets.samples_of(samples, "frame", "keyframes", sampled=True)
        maps = attention_maps.attention_maps(model, positive, frames, noise_level, SeededNoise(seed))
        if level != "all" and int(level) not in maps:
            raise ValueError(
                f"Attention Maps: this U-Net has no attention to the text at level {level}, only at "
                f"{', '.join(map(str, maps))}: choose one of these."
            )
        chosen = [enlarged(one, frames.shape) for number, one in maps.items() if level in ("all", str(number))]
        words = by_word(torch.stack(chosen).mean(0), positive[0][1]["words"])
        pictures = pictures_of("Attention Maps", frames, movq)
        titles = [f"{word} {100 * weights.mean():.0f}%" for word, weights in words]
        rows = torch.stack([overlaid(pictures, weights) for _, weights in words])
        columns = list(map(str, range(len(pictures))))
        return io.NodeOutput(looking.table_sheet(torch.cat([pictures[None], rows]), ["", *titles], columns)[None])


def enlarged(maps, shape):
    """Maps `[t, h, w, tokens]` of a level at the width and height of the latent of this shape."""
    times = shape[3] // maps.shape[1], shape[4] // maps.shape[2]
    return maps.repeat_interleave(times[0], 1).repeat_interleave(times[1], 2)


def by_word(maps, words):
    """(word, weights `[t, h, w]`) for each of `words`, the sum over its tokens."""
    if sum(count for _, count in words) != maps.shape[-1]:
        raise ValueError(
            "Attention Maps needs positive as Encode Text (Flan-UL2) gives it, but another node put more text into it: "
            "connect it directly."
        )
    parts = maps.split([count for _, count in words], dim=-1)
    return [(word, part.sum(-1)) for (word, _), part in zip(words, parts)]


def overlaid(pictures, weights):
    """Pictures `[t, H, W, 3]` in grey under the heat of `weights`, from their least to their most."""
    span = (weights.max() - weights.min()).clamp(min=1e-6)
    heat = looking.heat(looking.enlarged((weights - weights.min()) / span))
    return 0.35 * pictures.mean(-1, keepdim=True) + 0.65 * heat
