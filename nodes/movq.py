"""Between images and latents."""

from comfy_api.latest import io

from ..kv_core.sampling.settings import check_size
from . import inputs, pictures, sockets

EIGHT_BIT = "8 times the latent's height and width; values are k / 255, rounded down as in the original"


class EncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoEncodeImage",
            display_name="Encode Image (MoVQ)",
            category=inputs.CATEGORY,
            description="Turns an image into a first frame: shrinks it until it just covers the video's size, crops "
            "the centre and encodes it. Smaller images are not enlarged; their border is black.",
            search_aliases=["kandinsky", "vae encode", "image to latent", "first frame"],
            inputs=[
                inputs.image_movq(),
                io.Image.Input("image", tooltip="One image of any size; transparency is dropped."),
                inputs.size("width", 512, "video"),
                inputs.size("height", 512, "video"),
            ],
            outputs=[
                sockets.FrameLatent.Output(
                    "frame", tooltip="The image's latent [1, 4, 1, height / 8, width / 8], for Sample Keyframes."
                )
            ],
        )

    @classmethod
    def execute(cls, movq, image, width, height) -> io.NodeOutput:
        check_size(width, height)
        if len(image) != 1:
            raise ValueError(
                f"Encode Image takes one image, but got {len(image)}: pick one with ImageFromBatch, or take all as "
                "keyframes with Encode Frames (MoVQ)."
            )
        return io.NodeOutput(sockets.latent("frame", pictures.encode("Encode Image", movq, image, width, height)))


class EncodeFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoEncodeFrames",
            display_name="Encode Frames (MoVQ)",
            category=inputs.CATEGORY,
            description="Turns images or the frames of a video into keyframes for Interpolate Frames. Each is fitted "
            "and encoded on its own, as Encode Image does.",
            search_aliases=["kandinsky", "vae encode", "video to latent", "frame interpolation"],
            inputs=[
                inputs.image_movq(),
                io.Image.Input(
                    "images",
                    tooltip="Images of any size in the order of the clip, such as those of Load Video and Get Video "
                    "Components; transparency is dropped.",
                ),
                inputs.size("width", 512, "video"),
                inputs.size("height", 512, "video"),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes", tooltip="One keyframe per image, latent [1, 4, images, height / 8, width / 8]."
                )
            ],
        )

    @classmethod
    def execute(cls, movq, images, width, height) -> io.NodeOutput:
        check_size(width, height)
        return io.NodeOutput(sockets.latent("keyframes", pictures.encode("Encode Frames", movq, images, width, height)))


class DecodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDecodeImage",
            display_name="Decode Image (MoVQ)",
            category=inputs.CATEGORY,
            description="Decodes a first frame, or each frame of keyframes or a video on its own, to images.",
            search_aliases=["kandinsky", "vae decode", "latent to image", "preview"],
            inputs=[
                inputs.image_movq(),
                inputs.any_latent(
                    "samples", "A first frame, keyframes or a video; for a clip, Decode Video flickers less."
                ),
                inputs.tile_size(),
            ],
            outputs=[io.Image.Output("images", tooltip=f"One image per frame, {EIGHT_BIT}.")],
        )

    @classmethod
    def execute(cls, movq, samples, tile_size=0) -> io.NodeOutput:
        frames = sockets.samples_of(samples, *sockets.LATENTS)
        return io.NodeOutput(pictures.decode("Decode Image", movq.decode_images, frames, tile_size))


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDecodeVideo",
            display_name="Decode Video (temporal MoVQ)",
            category=inputs.CATEGORY,
            description="Decodes keyframes or a video in chunks of about four frames, so that neighbours stay "
            "consistent. Connect both outputs to Create Video: a clip plays for 5.5 seconds, however often it was "
            "interpolated, and keeps its pace when it is cut or extended.",
            search_aliases=["kandinsky", "vae decode", "latent to video", "frame rate"],
            inputs=[
                sockets.VideoMoVQ.Input("video_movq", tooltip="The temporal MoVQ from Load Temporal MoVQ."),
                inputs.sequence("samples", "Keyframes from Sample Keyframes or a video from Interpolate Frames."),
                inputs.tile_size(),
            ],
            outputs=[
                io.Image.Output("images", tooltip=f"The frames in order, {EIGHT_BIT}."),
                io.Float.Output(
                    "frame_rate",
                    tooltip="Frames per second, for fps of Create Video. 12 keyframes have 2.2, interpolated once 8.2 "
                    "and twice 32.2, as in the original.",
                ),
            ],
        )

    @classmethod
    def execute(cls, video_movq, samples, tile_size=0) -> io.NodeOutput:
        frames = sockets.samples_of(samples, "keyframes", "video")
        images = pictures.decode("Decode Video", video_movq.decode_video, frames, tile_size)
        return io.NodeOutput(images, sockets.frame_rate_of(samples))
