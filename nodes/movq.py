"""Between pictures and latents."""

import torch
from comfy_api.latest import io
from einops import rearrange

from ..kv_core.pictures import images
from ..kv_core.sampling.frames import CLIP_SECONDS
from . import sockets
from .host import report
from .inputs import check_size, size_input

EIGHT_BIT = "8 times the latent's height and width, values k / 255 rounded down as published"


class EncodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoEncodeImage",
            display_name="Encode Image (MoVQ)",
            category="Kandinsky Video",
            description=(
                "Makes a picture a first frame: shrinks it until it just covers the video's size, crops its centre "
                "(black where it is smaller, it is never enlarged) and encodes it."
            ),
            search_aliases=["kandinsky", "vae encode", "image to latent", "first frame"],
            inputs=[
                sockets.MoVQ.Input("movq", tooltip="The image MoVQ from Load MoVQ."),
                io.Image.Input("image", tooltip="One picture of any size; transparency is dropped."),
                size_input("width", 512, "video"),
                size_input("height", 512, "video"),
            ],
            outputs=[
                sockets.FrameLatent.Output(
                    "frame", tooltip="The picture's latent [1, 4, 1, height / 8, width / 8], for Sample Keyframes."
                ),
            ],
        )

    @classmethod
    def execute(cls, movq, image, width, height) -> io.NodeOutput:
        check_size("Encode Image", width, height)
        if len(image) != 1:
            raise ValueError(
                f"Encode Image takes one picture, but got {len(image)}: pick one with ImageFromBatch, or take all as "
                "keyframes with Encode Frames (MoVQ)."
            )
        return io.NodeOutput(encoded("Encode Image", "frame", movq, image, width, height))


class EncodeFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoEncodeFrames",
            display_name="Encode Frames (MoVQ)",
            category="Kandinsky Video",
            description=(
                "Makes pictures or the frames of a video keyframes, for Interpolate Frames: each is shrunk, cropped "
                "and encoded by itself, as Encode Image does with one."
            ),
            search_aliases=["kandinsky", "vae encode", "video to latent", "frame interpolation"],
            inputs=[
                sockets.MoVQ.Input("movq", tooltip="The image MoVQ from Load MoVQ."),
                io.Image.Input(
                    "images",
                    tooltip="Pictures in the order of the clip, of any size, such as those of Load Video and Get Video "
                    "Components; transparency is dropped.",
                ),
                size_input("width", 512, "video"),
                size_input("height", 512, "video"),
            ],
            outputs=[
                sockets.KeyframeLatent.Output(
                    "keyframes",
                    tooltip="One keyframe a picture, latent [1, 4, pictures, height / 8, width / 8].",
                ),
            ],
        )

    @classmethod
    def execute(cls, movq, images, width, height) -> io.NodeOutput:
        check_size("Encode Frames", width, height)
        return io.NodeOutput(encoded("Encode Frames", "keyframes", movq, images, width, height))


class DecodeImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDecodeImage",
            display_name="Decode Image (MoVQ)",
            category="Kandinsky Video",
            description="Decodes a first frame, or every frame of keyframes or a video by itself, to images.",
            search_aliases=["kandinsky", "vae decode", "latent to image", "preview"],
            inputs=[
                sockets.MoVQ.Input("movq", tooltip="The image MoVQ from Load MoVQ."),
                io.MultiType.Input(
                    "samples",
                    list(sockets.LATENTS.values()),
                    tooltip="A first frame, keyframes or a video; Decode Video gives steadier videos.",
                ),
                tile_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip=f"One image a frame, {EIGHT_BIT}."),
            ],
        )

    @classmethod
    def execute(cls, movq, samples, tile_size=0) -> io.NodeOutput:
        frames = rearrange(sockets.samples_of(samples, *sockets.LATENTS), "1 c f h w -> f c h w")
        return io.NodeOutput(decoded("Decode Image", movq.decode_images, frames, tile_size))


class DecodeVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoDecodeVideo",
            display_name="Decode Video (temporal MoVQ)",
            category="Kandinsky Video",
            description=(
                "Decodes keyframes or a video to frames, about four together so that they agree. Connect both outputs "
                "to Create Video: the clip lasts 5.5 seconds whatever its number of frames, as published."
            ),
            search_aliases=["kandinsky", "vae decode", "latent to video", "frame rate"],
            inputs=[
                sockets.VideoMoVQ.Input("video_movq", tooltip="The temporal MoVQ from Load Temporal MoVQ."),
                io.MultiType.Input(
                    "samples",
                    [sockets.KeyframeLatent, sockets.VideoLatent],
                    tooltip="Keyframes from Sample Keyframes or a video from Interpolate Frames.",
                ),
                tile_input(),
            ],
            outputs=[
                io.Image.Output("images", tooltip=f"The frames in order, {EIGHT_BIT}."),
                io.Float.Output(
                    "frame_rate", tooltip="Frames a second that make the clip last 5.5 seconds, for Create Video's fps."
                ),
            ],
        )

    @classmethod
    def execute(cls, video_movq, samples, tile_size=0) -> io.NodeOutput:
        frames = rearrange(sockets.samples_of(samples, "keyframes", "video"), "1 c f h w -> f c h w")
        images = decoded("Decode Video", video_movq.decode_video, frames, tile_size)
        return io.NodeOutput(images, len(frames) / CLIP_SECONDS)


def encoded(stage, kind, movq, image, width, height):
    """The host's IMAGE `[F, H, W, 1 to 4]`, its pictures encoded one by one, as a latent of `kind`."""
    pixels = (images.to_pixels(images.fit(to_picture(one), width, height)) for one in image.split(1))
    with report.measured(stage) as history:
        latents = torch.cat(list(report.progress(movq.encode_each(pixels, len(image)), len(image), stage)))
        samples = rearrange(sockets.finite(latents, "The MoVQ"), "f c h w -> 1 c f h w")
    return sockets.latent(kind, samples, history=history)


def to_picture(image):
    """The host's IMAGE `[1, H, W, 1 to 4]` in [0, 1] -> a Pillow image, 8 bits exact."""
    rgb = image[..., :3] if image.shape[-1] >= 3 else image[..., :1].expand(-1, -1, -1, 3)
    return images.to_images((rgb * 255).round().clamp(0, 255).to(torch.uint8))[0]


def tile_input():
    return io.Int.Input(
        "tile_size",
        default=0,
        min=0,
        max=4096,
        step=64,
        optional=True,
        advanced=True,
        tooltip="Decodes in overlapping tiles with sides of so many pixels, in less memory and a little other colours "
        "(27 to 32 dB on the tiny model); 0 to 4096, 0: whole. Where memory runs out, tiles are taken by themselves.",
    )


def decoded(stage, decode, frames, tile_size=0):
    """Latents `[frames, 4, h, w]` as the host's IMAGE by `decode`, with progress and what it took in the log."""
    with report.measured(stage):
        return to_images(report.progress(decode(frames, tile_size // 8), len(frames), stage))


def to_images(chunks):
    """Chunks of pixels `[b, 3, H, W]` -> the host's IMAGE `[frames, H, W, 3]`, whose values are k / 255."""
    frames = torch.cat([images.to_bytes(sockets.finite(pixels, "The MoVQ")) for pixels in chunks])
    return frames.float() / 255
