"""Text to conditioning."""

from comfy_api.latest import io

from ..kv_core.networks.text_encoder import BASE, INTERPOLATION
from . import sockets
from .host import report

PROJECTIONS = {"base": BASE, "interpolation": INTERPOLATION}


def projection_input():
    return io.Combo.Input(
        "projection",
        options=list(PROJECTIONS),
        default="base",
        tooltip="Which projection to the U-Nets follows the encoder. base: the published choice for every "
        "stage; interpolation: the one trained for Interpolate Frames.",
    )


def encoded(text_encoder, text, projection):
    """Context `[1, n, d]` and mask `[1, n]` of a prompt, by one of PROJECTIONS."""
    with report.measured("Encode Text"):
        context, mask = text_encoder.encode(text, PROJECTIONS[projection])
    return sockets.finite(context, "The text encoder"), mask


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTextEncode",
            display_name="Encode Text (Flan-UL2)",
            category="Kandinsky Video",
            description="Encodes a prompt for the U-Nets. One encoded prompt serves every stage.",
            search_aliases=["kandinsky", "prompt", "clip text encode", "flan-ul2"],
            inputs=[
                sockets.TextEncoder.Input("text_encoder", tooltip="The encoder from Load Text Encoder (Flan-UL2)."),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, best in English; at most 128 tokens (about 90 words) are read, the rest is "
                    "cut with a warning in the log. May be empty.",
                ),
                projection_input(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", tooltip="The encoded prompt and its mask: positive or negative of a sampling node."
                ),
            ],
        )

    @classmethod
    def execute(cls, text_encoder, text, projection) -> io.NodeOutput:
        context, mask = encoded(text_encoder, text, projection)
        words = text_encoder.tokenizer.words(text)
        return io.NodeOutput([[context, {"attention_mask": mask, "projection": projection, "words": words}]])
