"""Choices that spare the other ways' work: what is not chosen is never computed."""

from comfy_api.latest import io

from . import inputs, sockets

INPUTS = {"low": "keyframes", "medium": "video", "high": "smooth_video"}


class ChooseFirstPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoChooseFirstPicture",
            display_name="Choose First Picture",
            category=inputs.CATEGORY,
            description="Uses your image if one is connected; the generated first frame is then not computed. "
            "Otherwise uses the generated one.",
            search_aliases=["kandinsky", "image to video", "switch", "fallback", "optional image"],
            inputs=[
                io.Image.Input(
                    "drawn", lazy=True, tooltip="Used when no image is connected to picture: the decoded first frame."
                ),
                io.Image.Input("picture", optional=True, tooltip="Your image. Leave unconnected to use the other one."),
            ],
            outputs=[io.Image.Output("image", tooltip="The chosen image, for Encode Image.")],
        )

    @classmethod
    def check_lazy_status(cls, drawn=None, picture=None):
        return ["drawn"] if picture is None and drawn is None else []

    @classmethod
    def execute(cls, drawn=None, picture=None) -> io.NodeOutput:
        return io.NodeOutput(drawn if picture is None else picture)


class ChooseFrameRate(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoChooseFrameRate",
            display_name="Choose Frame Rate",
            category=inputs.CATEGORY,
            description="Picks the frame rate: passes on the keyframes or one of the two interpolations. Only the "
            "chosen one is computed.",
            search_aliases=["kandinsky", "fps", "switch", "interpolation"],
            inputs=[
                io.Combo.Input(
                    "fps",
                    options=list(INPUTS),
                    default="medium",
                    tooltip="The original's frame rates for 12 keyframes: low is 12 frames (2.2 per second), medium 45 "
                    "(8.2) and high 177 (32.2).",
                ),
                sockets.KeyframeLatent.Input("keyframes", lazy=True, tooltip="From Sample Keyframes, for low."),
                sockets.VideoLatent.Input("video", lazy=True, tooltip="Interpolated once, for medium."),
                sockets.VideoLatent.Input("smooth_video", lazy=True, tooltip="Interpolated twice, for high."),
            ],
            outputs=[sockets.AnyLatent.Output("samples", tooltip="The chosen latent, for Decode Video.")],
        )

    @classmethod
    def check_lazy_status(cls, fps, **latents):
        return [name for name in [INPUTS[fps]] if latents.get(name) is None]

    @classmethod
    def execute(cls, fps, **latents) -> io.NodeOutput:
        return io.NodeOutput(latents[INPUTS[fps]])
