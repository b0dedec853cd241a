"""Tells from the names and shapes of tensors which part of Kandinsky Video 1.1 a file holds, and its sizes.

Nothing is read from file names or from the published configs.json. Only `head_dim`, `groups` and the T5's
`relative_attention_max_distance` leave no trace in any shape: they have the published values unless the file's own
metadata, `{"kandinsky_video": '{"config": {...}}'}`, says otherwise, or an empty tensor named SIZES_TENSOR of shape
`(0, head_dim, groups)`, which survives a program that replaces the metadata with its own.
"""

import json
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from ..networks.operations import TorchOperations

Shapes = Mapping[str, tuple[int, ...]]

METADATA_KEY = "kandinsky_video"
SIZES_TENSOR = "kandinsky_video.sizes"
# Empty tensors by which other programs mark how a model they save is sampled.
MARKS = ("v_pred", "ztsnr")

DECODER = ("decoder.", "lm_head.")  # what a whole T5 has besides its encoder

UNSEEN = ("head_dim", "groups", "relative_attention_max_distance")

# More than any part has: 1,910 tensors, names of 110 characters, 32 layers, 128 buckets of distances.
MOST_TENSORS, LONGEST_NAME, MOST_BLOCKS, LARGEST_SIZE = 10_000, 250, 64, 1_000_000

PART_NAMES = {
    "keyframe_unet": "the keyframe U-Net",
    "interpolation_unet": "the interpolation U-Net",
    "image_movq": "the image MoVQ",
    "video_movq": "the temporal MoVQ",
    "text_encoder": "a T5 encoder",
    "projections": "the text projections",
}

# A tensor that every complete file of a kind has and no other model has under this name.
ANCHORS = {
    "unet": "feature_pooling.attention.to_query.weight",
    "movq": "decoder.norm_out.conv_y.weight",
    "text_encoder": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "projections": "projection_base.0.weight",
}

KIND_NAMES = {"unet": "a U-Net", "movq": "a MoVQ", "text_encoder": "a T5 encoder", "projections": "text projections"}

# Looked for before anything else: some of these files hold one of our anchors too.
FOREIGN = (
    (
        r"lora_(up|down|A|B)\b|lora\.(up|down)\b|\bhada_w|\blokr_w",
        "a LoRA, which a LoRA loader applies to a loaded U-Net",
    ),
    (r"\binput_blocks\.\d", "a Stable Diffusion checkpoint"),
    (r"\b(double_blocks|joint_blocks)\.\d", "a diffusion transformer"),
    (r"\bvisual_transformer_blocks\.\d", "a Kandinsky 5 checkpoint"),
    (r"\bdown_blocks\.\d", "a diffusers model"),
    (r"\btext_model\.encoder\.layers\.\d", "a CLIP text encoder"),
    (r"\bencoder\.down\.0\.block\.0\.norm1\.weight$", "another model's VAE"),
    (r"\bencoder\.block\.0\..*\bDenseReluDense\.wi\.weight$", "an older T5 encoder, without gated feed-forward"),
    (r"\bencoder\.block\.1\..*\brelative_attention_bias\b", "a UMT5 encoder"),
    (
        r"\btemporal_(compress|decompress|post_|conv_in|conv_out)",
        "an interpolation U-Net with temporal compression, which Kandinsky Video 1.1 does not have",
    ),
)


class CheckpointError(ValueError):
    """A file that cannot be used; the message is one sentence for the user."""


class WrongPartError(CheckpointError):
    """A file with another part than was expected; `part` is a key of PART_NAMES."""

    def __init__(self, message: str, part: str) -> None:
        super().__init__(message)
        self.part = part


@dataclass(frozen=True)
class Detected:
    """A recognised part, the keyword sizes of its class, and its tensors: name in the class -> name in the file.

    The projections are several models of one class; their config is `d_model`, `context_dim` and the `names`.
    `null_embedding` is what the file calls a U-Net's unconditional token, None where it has none.
    """

    part: str
    config: dict[str, Any]
    tensors: dict[str, str]
    null_embedding: str | None = None


def detect(shapes: Shapes, metadata: Mapping[str, str] | None = None, name: str = "This file") -> Detected:
    """Recognises a part by its tensors' names and shapes; `name` is what messages call the file.

    Raises CheckpointError for anything else, with what the file looks like instead.
    """
    for pattern, what in FOREIGN:
        if any(re.search(pattern, tensor) for tensor in shapes):
            raise CheckpointError(f"{name} looks like {what}; expected a part of Kandinsky Video 1.1.")
    stated = _stated_config(metadata or {}, name)
    kind, prefix = _kind_and_prefix(shapes, name)
    tensors = {tensor.removeprefix(prefix): tensor for tensor in shapes}
    null_embedding = None
    if kind == "unet":
        null_embedding = tensors.pop("null_embedding", None)
        tensors = {tensor: in_file for tensor, in_file in tensors.items() if tensor not in MARKS}
        stated = _sizes_tensor(shapes, tensors.pop(SIZES_TENSOR, None), name) | stated
    if kind == "text_encoder":
        tensors = _encoder_only(tensors)
    shape = {tensor: tuple(shapes[in_file]) for tensor, in_file in tensors.items()}
    try:
        part, config = READERS[kind](shape, stated)
        _check_blocks(config)
        _check_divisible(shape, config)
    except CheckpointError as error:
        raise CheckpointError(f"{name} {error}") from None
    except (LookupError, ArithmeticError, TypeError, ValueError):  # a tensor that shows a size is missing or misshapen
        raise CheckpointError(
            f"{name} holds some tensors of {KIND_NAMES[kind]}, but those that show its sizes are missing or have an "
            f"unknown shape; it is probably cut short, so download or convert it again."
        ) from None
    return Detected(part, config, tensors, null_embedding)


def check_complete(detected: Detected, shapes: Shapes, name: str = "This file") -> None:
    """Compares a file with the model its sizes imply; raises CheckpointError where they differ in any tensor."""
    try:
        expected = _expected_shapes(detected)
    except (ValueError, ArithmeticError, RuntimeError):  # say, a width that MoVQ's 32 norm groups do not divide
        raise CheckpointError(
            f"{name} looks like {PART_NAMES[detected.part]}, but no such model has its sizes; it is damaged or of "
            f"another version, so download or convert it again."
        ) from None
    found = {tensor: tuple(shapes[in_file]) for tensor, in_file in detected.tensors.items()}
    counts = {
        "missing": len(expected.keys() - found.keys()),
        "unknown": len(found.keys() - expected.keys()),
        "misshapen": sum(expected[tensor] != found[tensor] for tensor in expected.keys() & found.keys()),
    }
    if any(counts.values()):
        differences = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
        raise CheckpointError(
            f"{name} looks like {PART_NAMES[detected.part]}, but its tensors do not match ({len(expected)} expected, "
            f"{differences}); it is probably cut short or of another version, so download or convert it again."
        )


def check_names(names: Collection[str], name: str = "This file") -> None:
    """Raises CheckpointError where so many or such long names cannot be a part's, before they cost time or memory."""
    if len(names) > MOST_TENSORS or any(len(tensor) > LONGEST_NAME for tensor in names):
        raise _not_recognised(len(names), name)


def _not_recognised(count: int, name: str) -> CheckpointError:
    return CheckpointError(
        f"{name} is not recognised: its {count} tensors belong to no part of Kandinsky Video 1.1 (U-Net, MoVQ, "
        f"T5 encoder or text projections)."
    )


def _kind_and_prefix(shapes: Shapes, name: str) -> tuple[str, str]:
    for kind, anchor in ANCHORS.items():
        for tensor in shapes:
            if tensor == anchor or tensor.endswith("." + anchor):
                return kind, tensor.removesuffix(anchor)
    raise _not_recognised(len(shapes), name)


def _expected_shapes(detected: Detected) -> dict[str, tuple[int, ...]]:
    # Imported here, as transformers takes seconds to import and what only asks for names needs none of these.
    from ..networks.interpolation_unet import InterpolationUNet
    from ..networks.keyframe_unet import KeyframeUNet
    from ..networks.movq import MoVQ
    from ..networks.text_encoder import TextEncoder

    if detected.part == "projections":
        d_model, context_dim = detected.config["d_model"], detected.config["context_dim"]
        layer = {"0.weight": (context_dim, d_model), "1.weight": (context_dim,), "1.bias": (context_dim,)}
        return {f"{name}.{tensor}": shape for name in detected.config["names"] for tensor, shape in layer.items()}
    model_class = {
        "keyframe_unet": KeyframeUNet, "interpolation_unet": InterpolationUNet, "image_movq": MoVQ, "video_movq": MoVQ,
        "text_encoder": TextEncoder,
    }[detected.part]  # fmt: skip
    model = model_class(**detected.config, operations=TorchOperations, dtype=None, device="meta")
    return {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}


def _stated_config(metadata: Mapping[str, str], name: str) -> dict[str, int]:
    try:
        config = json.loads(metadata.get(METADATA_KEY, "{}")).get("config", {})
        stated = {size: config[size] for size in UNSEEN if size in config}
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{name} has unreadable '{METADATA_KEY}' metadata; convert the original again.") from None
    for size, value in stated.items():
        if type(value) is not int or not 1 <= value <= LARGEST_SIZE:
            raise CheckpointError(
                f"{name} states {size} {reprlib.repr(value)} in its metadata; expected a whole number above 0."
            )
    return stated


def _sizes_tensor(shapes: Shapes, tensor: str | None, name: str) -> dict[str, int]:
    if tensor is None:
        return {}
    shape = tuple(shapes[tensor])
    if len(shape) != 3 or shape[0] or not all(shape[1:]):
        raise CheckpointError(
            f"{name} has a tensor '{SIZES_TENSOR}' of shape {reprlib.repr(shape)}; expected (0, head_dim, groups)."
        )
    return {"head_dim": shape[1], "groups": shape[2]}


def _count(shape: Shapes, prefix: str) -> int:
    """How many different numbers follow `prefix`; if they are not 0, 1, ... the comparison of tensors shows it."""
    return _checked(len({tensor[len(prefix) :].split(".", 1)[0] for tensor in shape if tensor.startswith(prefix)}))


def _checked(blocks: int) -> int:
    if blocks > MOST_BLOCKS:
        raise CheckpointError(f"has {blocks} layers or blocks; expected {MOST_BLOCKS} at most.")
    return blocks


def _check_blocks(config: Mapping[str, Any]) -> None:
    """Refuses a model whose comparison would take long."""
    _checked(sum(config.get("num_blocks", ())))
    _checked(len(config.get("ch_mult", ())) * config.get("num_res_blocks", 0))


def _unet(shape: Shapes, stated: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    parts = {"temporal_resnet_blocks": "keyframe_unet", "temporal_projection_new": "interpolation_unet"}
    part = next((part for word, part in parts.items() if any(word in tensor for tensor in shape)), None)
    if part is None:
        raise CheckpointError("looks like Kandinsky 3's image U-Net; expected a U-Net of Kandinsky Video 1.1.")
    blocks = [f"down_samples.{level}.resnet_attn_blocks." for level in range(_count(shape, "down_samples."))]
    widths = [shape[f"{level}0.0.resnet_blocks.3.projection.weight"][0] for level in blocks]
    hidden, init_channels, *_ = shape[f"{blocks[0]}0.0.resnet_blocks.0.projection.weight"]
    # Only the products model_channels * mult are visible; the largest common one is right where a mult is 1.
    model_channels = math.gcd(*widths)
    config = {
        "num_channels": shape["in_layer.weight"][1],
        "out_channels": shape["out_layer.2.weight"][0],
        "model_channels": model_channels,
        "init_channels": init_channels,
        "time_embed_dim": shape["to_time_embed.1.weight"][0],
        "context_dim": shape[ANCHORS["unet"]][1],
        "groups": stated.get("groups", 32),
        "head_dim": stated.get("head_dim", 64),
        "expansion_ratio": next((s[0] // s[1] for t, s in shape.items() if t.endswith("feed_forward.0.weight")), 4),
        "compression_ratio": max(init_channels, widths[0]) // hidden,
        "dim_mult": tuple(width // model_channels for width in widths),
        "num_blocks": tuple(_count(shape, level) for level in blocks),
        "add_cross_attention": tuple(f"{level}0.1.attention.to_query.weight" in shape for level in blocks),
        "add_self_attention": tuple(
            level.replace("resnet_attn_blocks.", "self_attention_block.attention.to_query.weight") in shape
            for level in blocks
        ),
    }
    if part == "keyframe_unet":
        config["noise_augmentation"] = "temporal_noise_aug_time_encoding.1.weight" in shape
        config["motion_score"] = "temporal_motion_score_encoding.1.weight" in shape
    else:
        config["add_temporal_attention"] = any(".temporal_attention_block." in tensor for tensor in shape)
        config["use_perturbation_time_embed"] = "perturbation_to_time_embed.1.weight" in shape
        config["pass_skip_frames"] = "skip_embeddings.weight" in shape
        config["merge_perturbation_time_with_context"] = "time_embed_context_merge" in shape
    return part, config


def _movq(shape: Shapes, stated: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    ch, in_channels, *_ = shape["encoder.conv_in.weight"]
    levels = range(_count(shape, "encoder.down."))
    temporal = "decoder.mid.block_1.temporal_projection1.weight" in shape
    return "video_movq" if temporal else "image_movq", {
        "ch": ch,
        "ch_mult": tuple(shape[f"encoder.down.{level}.block.0.conv1.weight"][0] // ch for level in levels),
        "num_res_blocks": _count(shape, "encoder.down.0.block."),
        "z_channels": shape["post_quant_conv.weight"][0],
        "in_channels": in_channels,
        "out_ch": shape["decoder.conv_out.weight"][0],
        "temporal": temporal,
        "flicker_augmentation": "decoder.mid.block_1.temporal_flicker_proj.weight" in shape,
    }


def _text_encoder(shape: Shapes, stated: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    attention = "encoder.block.0.layer.0.SelfAttention."
    vocab_size, d_model = shape["shared.weight"]
    buckets, num_heads = shape[f"{attention}relative_attention_bias.weight"]
    d_ff = shape["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0]
    layers = _count(shape, "encoder.block.")
    if (d_model, d_ff, layers) == (4096, 10240, 24):
        # Its tensors have Flan-UL2's names and its output the same width: it would run, and only look wrong.
        raise CheckpointError("looks like T5-XXL, another model's text encoder; expected Flan-UL2's encoder.")
    return "text_encoder", {
        "d_model": d_model,
        "d_kv": shape[f"{attention}q.weight"][0] // num_heads,
        "d_ff": d_ff,
        "num_heads": num_heads,
        "num_layers": layers,
        "vocab_size": vocab_size,
        "relative_attention_num_buckets": buckets,
        "relative_attention_max_distance": stated.get("relative_attention_max_distance", 128),
    }


def _projections(shape: Shapes, stated: Mapping[str, int]) -> tuple[str, dict[str, Any]]:
    context_dim, d_model = shape[ANCHORS["projections"]]
    names = sorted({tensor.split(".", 1)[0] for tensor in shape if tensor.startswith("projection_")})
    return "projections", {"d_model": d_model, "context_dim": context_dim, "names": tuple(names)}


READERS: dict[str, Callable[[Shapes, Mapping[str, int]], tuple[str, dict[str, Any]]]] = {
    "unet": _unet,
    "movq": _movq,
    "text_encoder": _text_encoder,
    "projections": _projections,
}


def _encoder_only(tensors: Mapping[str, str]) -> dict[str, str]:
    """A whole T5 also holds its decoder, and may hold the embedding a second time under another name."""
    encoder = {
        tensor: in_file for tensor, in_file in tensors.items()
        if not tensor.startswith((*DECODER, "encoder.embed_tokens."))
    }  # fmt: skip
    if "encoder.embed_tokens.weight" in tensors:
        encoder.setdefault("shared.weight", tensors["encoder.embed_tokens.weight"])
    return encoder


def _check_divisible(shape: Shapes, config: Mapping[str, Any]) -> None:
    """Heads and the U-Nets' norm groups must divide every layer's width, which the model's shapes do not show."""
    for size, suffix, rows in (("head_dim", "to_query.weight", 1), ("groups", "context_mlp.1.weight", 2)):
        divisor = config.get(size, 1)
        width = next((s[0] // rows for t, s in shape.items() if t.endswith(suffix) and s[0] // rows % divisor), None)
        if width:
            raise CheckpointError(
                f"has layers of {width} channels, which {size} {divisor} does not divide; the published value "
                f"holds unless the file's '{METADATA_KEY}' metadata states another."
            )
