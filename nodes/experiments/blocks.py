"""Parts of a U-Net switched off, to see what they do."""

from comfy_api.latest import io

from ...kv_core.sampling.curves import whole_numbers
from .. import inputs
from ..host import patches


def levels(id, what):
    return io.String.Input(
        id,
        default="",
        tooltip=f"Levels whose {what} is skipped, such as 1, 2. Level 0 has the full width and height, each further "
        "one half of it. Empty: none.",
    )


class SwitchBlocks(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoSwitchBlocks",
            display_name="Switch Blocks",
            category=inputs.EXPERIMENTS,
            description="Switches parts of a U-Net off, to see what each does. The loaded model stays as it is: only "
            "sampling with this node's model skips them. Several of these nodes in a row add up.",
            search_aliases=["kandinsky", "ablation", "skip layer", "block bypass"],
            inputs=[
                io.Model.Input("model", tooltip="Either U-Net from Load U-Net."),
                io.Boolean.Input(
                    "temporal_layers",
                    default=True,
                    tooltip="All convolutions and attention over time. Off, each keyframe is generated, and each gap "
                    "filled, on its own.",
                ),
                io.Boolean.Input(
                    "text_pooling",
                    default=True,
                    tooltip="The summary of the text that is added to the time embedding of every block.",
                ),
                levels("self_attention_off", "attention within a frame"),
                levels("cross_attention_off", "attention to the text"),
            ],
            outputs=[io.Model.Output("model", tooltip="The same U-Net without what is switched off.")],
        )

    @classmethod
    def execute(cls, model, temporal_layers, text_pooling, self_attention_off, cross_attention_off) -> io.NodeOutput:
        there = patches.levels_with_attention("Switch Blocks", model)
        off = {
            kind: whole_numbers(text, f"{kind}_off", min(there[kind]), max(there[kind]))
            for kind, text in (("self_attention", self_attention_off), ("cross_attention", cross_attention_off))
        }
        return io.NodeOutput(patches.switch_off(model, not temporal_layers, not text_pooling, **off))
