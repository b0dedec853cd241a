"""Attention over positions and over the text.

Frames are folded into the batch, so feature maps are `[b t, c, h, w]`.
"""

from itertools import groupby
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from .norms import Activation, ConditionalGroupNorm, add_, repeat_rows, sum_rows
from .operations import additive_mask


class Attention(nn.Module):
    """Attention without biases from tokens `[b, n, in]` to a context `[b, m, context]`; returns `[b, n, out]`.

    A single context token without a mask is all that any query can attend to: the result is its value, `[b, 1, out]`.
    """

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
        values = self.to_value(context)
        if context.shape[1] > 1 or mask is not None:
            values = self.attend(self.to_query(x), self.to_key(context), values, self.heads, mask, options)
        return self.output_layer(values)


class Text(NamedTuple):
    """The text of `r` branches, or of `r` frames, that stand beside each other in a batch.

    tokens `[r, n, d]` with an additive mask, or None where every token counts. mean `[r, 1, d]`: over all rows of the
    context, masked ones included, so the number of those matters.
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None
    mean: torch.Tensor

    @classmethod
    def padded(cls, context, mask):
        """One Text of a context `[r, n, d]` and its mask `[r, n]` (nonzero: a real token), as training needs it."""
        return cls(context, additive_mask(mask.to(context.device), context.dtype), context.mean(1, keepdim=True))

    @classmethod
    def unpadded(cls, context, mask):
        """The same without masked tokens, as a tuple: rows with equally many tokens need no mask, and share a Text."""
        rows = [cls._unpadded_row(*row) for row in zip(context.split(1), mask.split(1))]
        return cls.joined(rows)

    def to(self, device, dtype):
        """The same on another device or in another type."""
        mask = self.mask if self.mask is None else self.mask.clamp(min=torch.finfo(dtype).min).to(device, dtype)
        return Text(self.tokens.to(device, dtype), mask, self.mean.to(device, dtype))

    @classmethod
    def _unpadded_row(cls, context, mask):
        real = mask[0] != 0
        if not real.any():  # does not occur in the pipeline; attention then averages all tokens
            return cls.padded(context, mask)
        return cls(context[:, real], None, context.mean(1, keepdim=True))

    @classmethod
    def joined(cls, texts):
        """Texts in the same order, neighbours of equal length as one."""
        runs = (list(run) for _, run in groupby(texts, lambda text: (text.tokens.shape[1], text.mask is None)))
        return tuple(
            cls(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*run))) if run[1:] else run[0]
            for run in runs
        )


def split_rows(tensor, texts):
    """The rows of `tensor`, equally many for every row of text, that belong to each of `texts`."""
    counts = [len(text.tokens) for text in texts]
    each = len(tensor) // sum(counts)
    return tensor.split([each * count for count in counts])


class AttentionPooling(nn.Module):
    """Adds a summary of the text, attention whose one query is the mean of the context, to the time embedding."""

    def __init__(self, time_embed_dim, context_dim, head_dim, **factory):
        super().__init__()
        self.attention = Attention(context_dim, time_embed_dim, context_dim, head_dim, **factory)

    def forward(self, time_embed, texts):
        summaries = [self.attention(text.mean, text.tokens, text.mask)[:, 0] for text in texts]
        return sum_rows(time_embed, torch.cat(summaries))


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

    def feed(self, x, embedding):
        """The block's second half."""
        return add_(self.feed_forward(self.out_norm(x, embedding)), x)


class SelfAttentionBlock(AttentionBlock):
    """Attention over the positions of a frame."""

    def forward(self, x, embedding, options=None):
        tokens = rearrange(self.in_norm(x, embedding), "r c h w -> r (h w) c")
        out = self.attention(tokens, tokens, options=options)
        return self.feed(x + rearrange(out, "r (h w) c -> r c h w", h=x.shape[2]), embedding)


class CrossAttentionBlock(AttentionBlock):
    """Attention to the text; all frames that see the same text are one long row of queries."""

    def forward(self, x, embedding, texts, options=None):
        rows = sum(len(text.tokens) for text in texts)
        embeddings = split_rows(repeat_rows(embedding, max(rows, len(embedding))), texts)
        parts = zip(split_rows(x, texts), embeddings, texts)
        parts = [add_(part, self._attend(part, embedding, text, options)) for part, embedding, text in parts]
        x = torch.cat(parts) if torch.is_grad_enabled() else x  # without gradients the parts are views of x
        return self.feed(x, embedding)

    def _attend(self, x, embedding, text, options):
        rows, height = len(text.tokens), x.shape[2]
        if text.tokens.shape[1] == 1 and text.mask is None:  # no query matters, so none is made
            values = self.attention(None, text.tokens)[:, 0]
            return repeat_rows(values, len(x))[:, :, None, None]
        tokens = rearrange(self.in_norm(x, embedding), "(r t) c h w -> r (t h w) c", r=rows)
        out = self.attention(tokens, text.tokens, text.mask, options)
        return rearrange(out, "r (t h w) c -> (r t) c h w", t=len(x) // rows, h=height)
