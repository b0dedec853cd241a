"""Parts of a U-Net switched off, to see what they do."""

from comfy_api.latest import io

from ...kv_core.networks.unet import Off
from ..host import blocks
from ..inputs import EXPERIMENTS
from ..lists import whole_numbers


def levels_input(id, what):
    return io.String.Input(
        id,
        default="",
        tooltip=f"Levels whose {what} adds nothing, such as 1, 2. Level 0 has the full width and height, each further "
        "one half of it. Empty: none.",
    )


class SwitchBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoSwitchBlocks",
            display_name="Switch Blocks",
            category=EXPERIMENTS,
            description=(
                "Switches parts of a U-Net off, to see what each does. The loaded model stays as it is: only what is "
                "sampled with this node's model lacks them. Several of these nodes in a row add up."
            ),
            search_aliases=["kandinsky", "ablation", "skip layer", "block bypass"],
            inputs=[
                io.Model.Input("model", tooltip="Either U-Net from Load U-Net."),
                io.Boolean.Input(
                    "temporal_layers",
                    default=True,
                    tooltip="All convolutions and attention over time. Off, every keyframe is drawn for itself, and "
                    "every gap is filled for itself.",
                ),
                io.Boolean.Input(
                    "text_pooling",
                    default=True,
                    tooltip="The summary of the text that is added to the time embedding of every block.",
                ),
                levels_input("self_attention_off", "attention over a frame's positions"),
                levels_input("cross_attention_off", "attention to the text"),
            ],
            outputs=[io.Model.Output("model", tooltip="The same U-Net without what is switched off.")],
        )

    @classmethod
    def execute(cls, model, temporal_layers, text_pooling, self_attention_off, cross_attention_off) -> io.NodeOutput:
        kinds = blocks.levels_with_attention("Switch Blocks", model)
        chosen = {}
        for kind, text in (("self_attention", self_attention_off), ("cross_attention", cross_attention_off)):
            levels = kinds[kind]
            chosen[kind] = whole_numbers(text, f"Switch Blocks: in {kind}_off", min(levels), max(levels))
        return io.NodeOutput(blocks.switch_off(model, Off(not temporal_layers, not text_pooling, **chosen)))
