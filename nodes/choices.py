"""Choices that spare the other way's work: what is not chosen is never computed."""

from comfy_api.latest import io

from . import sockets

RATES = ("low", "medium", "high")


class ChooseFirstPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoChooseFirstPicture",
            display_name="Choose First Picture",
            category="Kandinsky Video",
            description=(
                "Takes your picture where one is connected, and else the drawn one. With a picture, nothing is drawn: "
                "the nodes behind the drawn one do not run."
            ),
            search_aliases=["kandinsky", "image to video", "switch", "fallback", "optional image"],
            inputs=[
                io.Image.Input(
                    "drawn", lazy=True, tooltip="The picture for want of another, such as Decode Image makes of a "
                    "sampled first frame.",
                ),
                io.Image.Input("picture", optional=True, tooltip="Your picture. May be left open."),
            ],
            outputs=[io.Image.Output("image", tooltip="The chosen picture, for Encode Image.")],
        )  # fmt: skip

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
            category="Kandinsky Video",
            description=(
                "One list instead of three graphs: hands on the keyframes or one of their interpolations. Only the "
                "chosen one is computed."
            ),
            search_aliases=["kandinsky", "fps", "switch", "interpolation"],
            inputs=[
                io.Combo.Input(
                    "fps",
                    options=list(RATES),
                    default="medium",
                    tooltip="The published frame rates for 12 keyframes: low is 12 frames (2.2 a second), medium 45 "
                    "(8.2) and high 177 (32.2).",
                ),
                sockets.KeyframeLatent.Input("keyframes", lazy=True, tooltip="From Sample Keyframes, for low."),
                sockets.VideoLatent.Input("video", lazy=True, tooltip="Interpolated once, for medium."),
                sockets.VideoLatent.Input("smooth_video", lazy=True, tooltip="Interpolated twice, for high."),
            ],
            outputs=[
                sockets.AnyLatent.Output("samples", tooltip="The chosen latent, for Decode Video."),
            ],
        )

    @classmethod
    def check_lazy_status(cls, fps, **latents):
        return [name for name in [_chosen(fps)] if latents.get(name) is None]

    @classmethod
    def execute(cls, fps, **latents) -> io.NodeOutput:
        return io.NodeOutput(latents[_chosen(fps)])


def _chosen(fps):
    return ("keyframes", "video", "smooth_video")[RATES.index(fps)]
