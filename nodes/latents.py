"""To the host's LATENT and back, so that its own latent nodes work between any two stages."""

from comfy_api.latest import io

from . import inputs, sockets


class ToLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoToLatent",
            display_name="Export Latent",
            category=inputs.CATEGORY,
            description="Passes a latent on to ComfyUI's own latent nodes: save, blend, batch, cut.",
            search_aliases=["kandinsky", "convert latent", "save latent", "batch latents"],
            inputs=[inputs.any_latent("samples", "A first frame, keyframes or a video.")],
            outputs=[
                io.Latent.Output(
                    "latent",
                    tooltip="The same latent [1, 4, frames, h, w] for ComfyUI's nodes. Batch Latents joins frames, and "
                    "so does LatentConcat along t.",
                )
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
            display_name="Import Latent",
            category=inputs.CATEGORY,
            description="Takes a latent back from ComfyUI's own latent nodes. Two images joined and imported as "
            "keyframes make a morph in Interpolate Frames.",
            search_aliases=["kandinsky", "convert latent", "load latent", "morph"],
            inputs=[
                io.Latent.Input(
                    "latent",
                    tooltip="A latent of a Kandinsky MoVQ: [1, 4, frames, h, w], or a batch whose items become frames. "
                    "A mask in it is dropped: connect masks to the latent of Keyframe Guider.",
                ),
                io.Combo.Input(
                    "kind",
                    options=list(sockets.LATENTS),
                    default="keyframes",
                    tooltip="What its frames are, which decides where it can go: frame (one image), keyframes (also "
                    "several images joined) or video (frames that were interpolated).",
                ),
            ],
            outputs=[
                sockets.AnyLatent.Output("samples", tooltip="The latent of the chosen kind, for nodes that take it.")
            ],
        )

    @classmethod
    def execute(cls, latent, kind) -> io.NodeOutput:
        return io.NodeOutput(sockets.from_latent(latent, kind))
