"""To the host's LATENT and back, so that its own latent nodes work between any two stages."""

from comfy_api.latest import io

from . import sockets


class ToLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoToLatent",
            display_name="Kandinsky Video Latent to Latent",
            category="Kandinsky Video",
            description="Hands a latent to ComfyUI's own latent nodes: save, blend, batch, cut.",
            search_aliases=["kandinsky", "convert latent", "save latent", "batch latents"],
            inputs=[
                io.MultiType.Input(
                    "samples", list(sockets.LATENTS.values()), tooltip="A first frame, keyframes or a video."
                ),
            ],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The same latent [1, 4, frames, h, w] for ComfyUI's nodes. Batch Latents joins frames, and "
                    "so does LatentConcat along t.",
                ),
            ],
        )

    @classmethod
    def execute(cls, samples) -> io.NodeOutput:
        return io.NodeOutput(sockets.to_latent(samples))


class FromLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoFromLatent",
            display_name="Latent to Kandinsky Video Latent",
            category="Kandinsky Video",
            description=(
                "Takes a latent back from ComfyUI's own latent nodes. Two pictures joined and taken as keyframes "
                "become a morph in Interpolate Frames."
            ),
            search_aliases=["kandinsky", "convert latent", "load latent", "morph"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="A latent of a Kandinsky MoVQ: [1, 4, frames, h, w], or a batch whose items become frames. "
                    "A mask in it is left out: it works on the latent of Keyframe Guider.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(sockets.LATENTS),
                    default="keyframes",
                    tooltip="What its frames are, which decides where it can go: frame (one picture), keyframes (also "
                    "several pictures joined) or video (frames that were interpolated).",
                ),
            ],
            outputs=[
                sockets.AnyLatent.Output("samples", tooltip="The latent of the chosen kind, for nodes that take it."),
            ],
        )

    @classmethod
    def execute(cls, latent, kind) -> io.NodeOutput:
        return io.NodeOutput(sockets.from_latent(latent, kind))
