"""The loaders: from a file to a socket. Which part a file is, is read from its tensors."""

from comfy_api.latest import io

from . import sockets
from .host import files, movq, text_encoder, unets, weights
from .inputs import CATEGORY


def file_input(id, category, preferred, tooltip):
    return io.Combo.Input(id, **files.choices(category, preferred), tooltip=tooltip)


def dtype_input(default, smaller=True):
    options = [name for name in weights.WEIGHT_DTYPES if smaller or name not in weights.EIGHT_BIT]
    effect = "int8 and fp8 halve the memory of fp16 and bf16 and cost some quality, int8 less. " if smaller else ""
    return io.Combo.Input(
        "weight_dtype",
        options=options,
        default="default",
        tooltip=f"Type the weights are stored in. default: {default}. {effect}fp32 takes twice the memory of fp16 and "
        "bf16.",
    )


class UNetLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoUNetLoader",
            display_name="Load U-Net",
            category=CATEGORY,
            description="Loads a U-Net of Kandinsky Video 1.1. The keyframe U-Net generates the first frame and the "
            "keyframes, the interpolation U-Net fills the gaps between frames; which one a file holds is detected.",
            search_aliases=["kandinsky", "load diffusion model", "unet", "t2v", "interpolation"],
            inputs=[
                file_input(
                    "unet_name",
                    "diffusion_models",
                    "kv-tiny/keyframes.safetensors",
                    "U-Net file from models/diffusion_models: t2v.pt or interpolation.pt (or their safetensors "
                    "conversions), about 8 GB each in fp16.",
                ),
                dtype_input("what ComfyUI picks for this device, fp16 on most GPUs"),
            ],
            outputs=[
                io.Model.Output(
                    "model",
                    tooltip="The U-Net: for Sample First Frame and Sample Keyframes, or for Interpolate Frames. LoRA, "
                    "EasyCache and torch.compile nodes work on it.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, unet_name):
        return files.check("diffusion_models", unet_name, ["keyframes", "interpolation"])

    @classmethod
    def execute(cls, unet_name, weight_dtype) -> io.NodeOutput:
        return io.NodeOutput(unets.load_unet(files.path("diffusion_models", unet_name), weight_dtype))


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTextEncoderLoader",
            display_name="Load Text Encoder (Flan-UL2)",
            category=CATEGORY,
            description="Loads the Flan-UL2 text encoder and the two projections that turn its output into what the "
            "U-Nets read.",
            search_aliases=["kandinsky", "flan-ul2", "t5", "load clip", "text encoder"],
            inputs=[
                file_input(
                    "text_encoder_name",
                    "text_encoders",
                    "kv-tiny/flan-ul2",
                    "Flan-UL2's folder in models/text_encoders, or a single file with the tokenizer's files beside it; "
                    "about 17 GB in fp16.",
                ),
                file_input(
                    "projections_name",
                    "text_encoders",
                    "kv-tiny/t5_projections.safetensors",
                    "Projections file from models/text_encoders: t5_projections.pt (or its safetensors conversion).",
                ),
                dtype_input("what ComfyUI picks for text encoders, fp16 unless a start-up flag says otherwise"),
            ],
            outputs=[
                sockets.TextEncoder.Output(
                    "text_encoder",
                    tooltip="The text encoder, for Encode Text. It computes in fp32, as in the original.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, text_encoder_name, projections_name):
        found = files.check("text_encoders", text_encoder_name, ["text"])
        return found if found is not True else files.check("text_encoders", projections_name, ["projections"])

    @classmethod
    def execute(cls, text_encoder_name, projections_name, weight_dtype) -> io.NodeOutput:
        encoder, projections = (files.path("text_encoders", name) for name in (text_encoder_name, projections_name))
        return io.NodeOutput(text_encoder.load_text_encoder(encoder, projections, weight_dtype))


class MoVQLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoMoVQLoader",
            display_name="Load MoVQ",
            category=CATEGORY,
            description="Loads the image MoVQ, the autoencoder between single images and latents.",
            search_aliases=["kandinsky", "movq", "load vae", "autoencoder"],
            inputs=[
                file_input(
                    "movq_name",
                    "vae",
                    "kv-tiny/movq.safetensors",
                    "Image MoVQ file from models/vae: movq.pt (or its safetensors conversion), about 1 GB in fp32.",
                ),
                dtype_input("what ComfyUI picks for VAEs, bf16 on most GPUs", smaller=False),
            ],
            outputs=[sockets.MoVQ.Output("movq", tooltip="The image MoVQ, for Encode Image and Decode Image.")],
        )

    @classmethod
    def validate_inputs(cls, movq_name):
        return files.check("vae", movq_name, ["movq"])

    @classmethod
    def execute(cls, movq_name, weight_dtype) -> io.NodeOutput:
        return io.NodeOutput(movq.load_movq(files.path("vae", movq_name), "image_movq", weight_dtype))


class TemporalMoVQLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="KandinskyVideoTemporalMoVQLoader",
            display_name="Load Temporal MoVQ",
            category=CATEGORY,
            description="Loads the temporal MoVQ, the autoencoder whose decoder sees several frames at once.",
            search_aliases=["kandinsky", "video movq", "load vae", "video decoder"],
            inputs=[
                file_input(
                    "video_movq_name",
                    "vae",
                    "kv-tiny/video_movq.safetensors",
                    "Temporal MoVQ file from models/vae: video_movq.pt (or its safetensors conversion), about "
                    "2.7 GB in fp32.",
                ),
                dtype_input("what ComfyUI picks for VAEs, bf16 on most GPUs", smaller=False),
            ],
            outputs=[sockets.VideoMoVQ.Output("video_movq", tooltip="The temporal MoVQ, for Decode Video.")],
        )

    @classmethod
    def validate_inputs(cls, video_movq_name):
        return files.check("vae", video_movq_name, ["video_movq"])

    @classmethod
    def execute(cls, video_movq_name, weight_dtype) -> io.NodeOutput:
        return io.NodeOutput(movq.load_movq(files.path("vae", video_movq_name), "video_movq", weight_dtype))
