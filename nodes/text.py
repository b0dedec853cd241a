"""Text to conditioning."""

from comfy_api.latest import io

from . import inputs
from .host.text_encoder import encode_prompts


class TextEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTextEncode",
            display_name="Encode Text (Flan-UL2)",
            category=inputs.CATEGORY,
            description="Encodes a prompt for the U-Nets. One encoded prompt serves every stage.",
            search_aliases=["kandinsky", "prompt", "clip text encode", "flan-ul2"],
            inputs=[
                inputs.text_encoder(),
                io.String.Input(
                    "text",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="The prompt, best in English. At most 128 tokens (about 90 words) are read; the rest is "
                    "cut off with a warning in the log. May be empty.",
                ),
                inputs.projection(),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning", tooltip="The encoded prompt, for positive or negative of a sampling node."
                )
            ],
        )

    @classmethod
    def execute(cls, text_encoder, text, projection) -> io.NodeOutput:
        return io.NodeOutput(encode_prompts(text_encoder, [(0, text)], projection))
