"""Attention over positions and over the text, and what a U-Net reads of a text once for all its steps.

Frames are folded into the batch, so feature maps are `[b t, c, h, w]`.
"""

from itertools import chain
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from .norms import Activation, ConditionalGroupNorm, added, repeat_rows, sum_rows
from .operations import additive_mask


class Attention(nn.Module):
    """Attention without biases from tokens `[b, n, in]` to a context `[b, m, context]`; returns `[b, n, out]`."""

    def __init__(self, in_channels, out_channels, context_dim, head_dim, *, operations, dtype, device):
        super().__init__()
        linear = {"bias": False, "dtype": dtype, "device": device}
        self.heads = out_channels // head_dim
        self.to_query = operations.Linear(in_channels, out_channels, **linear)
        self.to_key = operations.Linear(context_dim, out_channels, **linear)
        self.to_value = operations.Linear(context_dim, out_channels, **linear)
        self.output_layer = operations.Linear(out_channels, out_channels, **linear)
        self.attend = operations.attention

    def forward(self, x, context, mask=None, options=None):
        return self.look_at(x, self.to_key(context), self.to_value(context), mask, options)

    def look_at(self, x, keys, values, mask=None, options=None):
        """The same for a context that was turned into keys and values `[b, m, out]` before."""
        return self.output_layer(self.attend(self.to_query(x), keys, values, self.heads, mask, options))


class AttentionPooling(nn.Module):
    """Adds a summary of the text to the time embedding."""

    def __init__(self, time_embed_dim, context_dim, head_dim, **factory):
        super().__init__()
        self.attention = Attention(context_dim, time_embed_dim, context_dim, head_dim, **factory)

    def forward(self, time_embed, summary):
        return sum_rows(time_embed, summary)

    def summary(self, context, mask):
        """`[b, T]`; its one query is the mean of **all** context rows, masked ones too, so their number matters."""
        return self.attention(context.mean(1, keepdim=True), context, mask)[:, 0]


class Reading(NamedTuple):
    """What one block keeps of the text of `rows` branches that stand beside each other.

    keys and values `[rows, m, c]` with an additive mask or None where all m tokens count. Attention to a single token
    is that token's value, whoever asks: then there are no keys, and values are the attention's output `[rows, c]`.
    frames: how many of a branch's frames look at it, where others look at another; 0: all frames of its branches.
    """

    rows: int
    keys: torch.Tensor | None
    values: torch.Tensor
    mask: torch.Tensor | None
    frames: int = 0


class Text(NamedTuple):
    """A text as one U-Net reads it: summary `[b, T]`, and of every block its Readings, in the order of their use.

    Where some branch has several texts over its frames, summary has a row for every frame, `[b t, T]`.
    """

    summary: torch.Tensor
    readings: tuple[tuple[Reading, ...], ...]

    @classmethod
    def joined(cls, texts):
        """Texts of single branches as that of all; they may differ in length."""
        rows = max(len(text.summary) for text in texts)
        return cls(torch.cat([repeat_rows(text.summary, rows) for text in texts]),
                   tuple(tuple(chain(*block)) for block in zip(*(text.readings for text in texts))))  # fmt: skip

    @classmethod
    def over_frames(cls, texts, counts):
        """Texts of single branches as that of one, whose first counts[0] frames look at the first, and so on."""
        summary = torch.cat([repeat_rows(text.summary, count) for text, count in zip(texts, counts)])
        blocks = zip(*(text.readings for text in texts))
        return cls(summary, tuple(
            tuple(reading._replace(frames=count) for (reading,), count in zip(block, counts)) for block in blocks
        ))  # fmt: skip


def reading_parts(tensor, readings):
    """The rows of `tensor`, one a branch or one a frame, that belong to each of the readings."""
    whole = sum(reading.rows for reading in readings if not reading.frames)
    each = (len(tensor) - sum(reading.frames for reading in readings)) // max(whole, 1)
    return tensor.split([reading.frames or reading.rows * each for reading in readings])


def read_text(pooling, blocks, context, mask):
    """The Text that `pooling` and the cross-attention `blocks` make of a context `[b, n, d]` and its mask `[b, n]`.

    What a network does in training stays one piece, for its gradients' sake. Else every branch is read by itself and
    without its masked tokens: what is left needs no mask, and often no attention.
    """
    additive = additive_mask(mask.to(context.device), context.dtype)
    parts = [(context, additive, len(context))]
    if not torch.is_grad_enabled():
        parts = [_counted(*row) for row in zip(context.split(1), additive.split(1), mask)]
    summary = pooling.summary(context, additive)
    return Text(summary, tuple(tuple(block.read(*part) for part in parts) for block in blocks))


def _counted(context, additive, mask):
    counts = mask != 0
    # A text without any token is no case of the pipeline's; masked throughout, it sees the mean of all.
    return (context[:, counts], None, 1) if counts.any() else (context, additive, 1)


def feed_forward(channels, expansion_ratio, *, operations, dtype, device):
    """Two 1x1 convolutions without bias around a SiLU."""
    convolution = {"kernel_size": 1, "bias": False, "dtype": dtype, "device": device}
    return nn.Sequential(
        operations.Conv2d(channels, expansion_ratio * channels, **convolution),
        Activation(),
        operations.Conv2d(expansion_ratio * channels, channels, **convolution),
    )


class AttentionBlock(nn.Module):
    """Attention and a feed-forward, each added to what a conditional norm saw of x `[b t, c, h, w]`."""

    def __init__(self, channels, sizes, context_dim=None, **factory):
        super().__init__()
        self.in_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.attention = Attention(channels, channels, context_dim or channels, sizes.head_dim, **factory)
        self.out_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.feed_forward = feed_forward(channels, sizes.expansion_ratio, **factory)

    def _feed_forward(self, x, embedding):
        return added(self.feed_forward(self.out_norm(x, embedding)), x)


class SelfAttentionBlock(AttentionBlock):
    """Attention over the positions of a frame."""

    def forward(self, x, embedding, options=None, attend=True):
        if attend:
            tokens = rearrange(self.in_norm(x, embedding), "r c h w -> r (h w) c")
            out = self.attention(tokens, tokens, options=options)
            x = x + rearrange(out, "r (h w) c -> r c h w", h=x.shape[2])
        return self._feed_forward(x, embedding)


class CrossAttentionBlock(AttentionBlock):
    """Attention to the text; all frames that look at the same are one long row of queries."""

    def read(self, context, mask, rows):
        """The Reading of a context `[rows, n, d]` with its additive mask, or None where all its tokens count."""
        keys, values = self.attention.to_key(context), self.attention.to_value(context)
        if mask is None and context.shape[1] == 1:
            return Reading(rows, None, self.attention.output_layer(values)[:, 0], None)
        return Reading(rows, keys, values, mask)

    def forward(self, x, embedding, readings, options=None, attend=True):
        if attend:
            if any(reading.frames for reading in readings):
                embedding = repeat_rows(embedding, x.shape[0])
            parts = zip(reading_parts(x, readings), reading_parts(embedding, readings), readings)
            looked = [added(part, self._look_at(part, rows, reading, options)) for part, rows, reading in parts]
            x = torch.cat(looked) if torch.is_grad_enabled() else x  # of which the parts are views
        return self._feed_forward(x, embedding)

    def _look_at(self, x, embedding, reading, options):
        if reading.keys is None:
            return repeat_rows(reading.values, x.shape[0])[:, :, None, None]
        tokens = rearrange(self.in_norm(x, embedding), "(b t) c h w -> b (t h w) c", b=reading.rows)
        out = self.attention.look_at(tokens, reading.keys, reading.values, reading.mask, options)
        return rearrange(out, "b (t h w) c -> (b t) c h w", t=x.shape[0] // reading.rows, h=x.shape[2])
