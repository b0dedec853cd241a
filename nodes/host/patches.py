"""Layers of a U-Net that a clone of its patcher leaves out. The loaded model itself is never changed."""

import torch

from ...kv_core.networks import interpolation_unet, keyframe_unet
from ...kv_core.networks.attention import AttentionPooling, CrossAttentionBlock, SelfAttentionBlock
from ...kv_core.networks.unet import TemporalMix
from .unets import VideoModel

TEMPORAL = (
    keyframe_unet.TemporalResNetBlock,
    keyframe_unet.TemporalAttentionBlock,
    interpolation_unet.TemporalAttentionBlock,
    TemporalMix,
)
ATTENTION = {"self_attention": SelfAttentionBlock, "cross_attention": CrossAttentionBlock}


class Skip(torch.nn.Module):
    """In the place of a layer that changes its first argument."""

    def forward(self, x, *_):
        return x


class FeedForwardOnly(torch.nn.Module):
    """An attention block without its attention; the rest keeps its names, by which patches of weights find it."""

    def __init__(self, block):
        super().__init__()
        self.out_norm, self.feed_forward = block.out_norm, block.feed_forward

    feed = SelfAttentionBlock.feed

    def forward(self, x, embedding, *_):
        return self.feed(x, embedding)


def layers(model, kinds):
    """(name, number of its level) of every layer of these classes; levels count from the outermost, 0, down and up."""
    depth = len(model.model.diffusion_model.down_samples)
    found = []
    for name, kind in model.model.layers.items():
        if issubclass(kind, kinds):
            path, *rest = name.split(".")
            level = None
            if path in ("down_samples", "up_samples"):
                level = int(rest[0]) if path == "down_samples" else depth - 1 - int(rest[0])
            found.append((f"diffusion_model.{name}", level))
    return found


def levels_with_attention(stage, model):
    """{"self_attention": numbers of levels, "cross_attention": the same}; raises ValueError for another model."""
    if not isinstance(model.model, VideoModel):
        raise ValueError(
            f"{stage} needs a U-Net of Kandinsky Video, but got another model ({type(model.model).__name__}): connect "
            "Load U-Net."
        )
    return {kind: sorted({level for _, level in layers(model, block)}) for kind, block in ATTENTION.items()}


def switch_off(model, temporal=False, pooling=False, self_attention=(), cross_attention=()):
    """A clone of the model that leaves out what it left out before, and more.

    temporal: all layers over time. pooling: the text's summary in the time embedding. self_attention and
    cross_attention: numbers of levels whose attention adds nothing; their feed-forward stays.
    """
    clone = model.clone()
    skipped = (TEMPORAL if temporal else ()) + ((AttentionPooling,) if pooling else ())
    for name, _ in layers(model, skipped):
        clone.add_object_patch(name, Skip())
    for kind, levels in (("self_attention", self_attention), ("cross_attention", cross_attention)):
        for name, level in layers(model, ATTENTION[kind]):
            if level in levels:
                clone.add_object_patch(name, FeedForwardOnly(clone.get_model_object(name)))
    return clone
