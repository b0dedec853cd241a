"""The blocks both U-Nets are built from.

Frames are folded into the batch, so feature maps are `[b t, c, h, w]`. What belongs to a whole branch, such as the
time embedding `[b, T]` or the text `[b, n, d]`, is kept once and repeated where a feature map's rows need it; it may
also come with a row for every frame.
Every class takes `operations` (see operations.py) and the `dtype` and `device` of its weights.
"""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import group_norm, silu


@dataclass(frozen=True)
class Sizes:
    """The sizes both U-Nets share; the defaults are the published ones, the tuples run from the outermost level."""

    model_channels: int = 384
    init_channels: int = 192
    time_embed_dim: int = 1536
    context_dim: int = 4096
    groups: int = 32
    head_dim: int = 64
    expansion_ratio: int = 4
    compression_ratio: int = 2
    dim_mult: tuple[int, ...] = (1, 2, 4, 8)
    num_blocks: tuple[int, ...] = (3, 3, 3, 3)
    add_cross_attention: tuple[bool, ...] = (False, True, True, True)
    add_self_attention: tuple[bool, ...] = (False, True, True, True)


def sinusoidal(values, dim, dtype):
    """Transformer sinusoids of `values` `[...]`: sines then cosines, `[..., dim]`, in `dtype`.

    Vaswani et al. 2017, "Attention Is All You Need", section 3.5, with the last frequency exactly 1 / 10000.
    """
    half = dim // 2
    precise = torch.promote_types(dtype, torch.float32)  # 16-bit floats cannot tell timestep 980 from 979
    exponents = torch.arange(half, dtype=precise, device=values.device) / (half - 1)
    angles = values[..., None].to(precise) * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


def repeat_rows(tensor, rows):
    """One row a branch -> one row a feature map; as it is where it has a row for every map already."""
    return tensor.repeat_interleave(rows // tensor.shape[0], dim=0)


class NumberEmbedding(nn.Sequential):
    """A number (timestep, frame index, score) `[...]` -> `[..., T]`; the layers are numbered as published."""

    def __init__(self, init_channels, time_embed_dim, *, operations, dtype, device):
        super().__init__(
            nn.Identity(),  # the place of the sinusoids, which have no weights
            operations.Linear(init_channels, time_embed_dim, dtype=dtype, device=device),
            nn.SiLU(),
            operations.Linear(time_embed_dim, time_embed_dim, dtype=dtype, device=device),
        )
        self.init_channels = init_channels

    def forward(self, values, dtype):
        return super().forward(sinusoidal(values, self.init_channels, dtype))


class ConditionalGroupNorm(nn.Module):
    """Group normalisation whose scale and shift come from an embedding `[rows or b, T]`."""

    def __init__(self, channels, groups, time_embed_dim, *, operations, dtype, device):
        super().__init__()
        self.groups = groups
        self.context_mlp = nn.Sequential(
            nn.SiLU(), operations.Linear(time_embed_dim, 2 * channels, dtype=dtype, device=device)
        )

    def forward(self, x, embedding):
        scale, shift = repeat_rows(self.context_mlp(embedding), x.shape[0])[:, :, None, None].chunk(2, dim=1)
        return group_norm(x, self.groups) * (scale + 1) + shift


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
        q, k, v = self.to_query(x), self.to_key(context), self.to_value(context)
        return self.output_layer(self.attend(q, k, v, self.heads, mask, options))


class AttentionPooling(nn.Module):
    """Adds a summary of the text to the time embedding.

    Its one query is the mean of **all** context rows, masked ones and zeros too, so the context's length matters.
    """

    def __init__(self, time_embed_dim, context_dim, head_dim, **factory):
        super().__init__()
        self.attention = Attention(context_dim, time_embed_dim, context_dim, head_dim, **factory)

    def forward(self, time_embed, context, mask, options):
        pooled = self.attention(context.mean(1, keepdim=True), context, mask, options)[:, 0]
        rows = max(time_embed.shape[0], pooled.shape[0])
        return repeat_rows(time_embed, rows) + repeat_rows(pooled, rows)


def feed_forward(channels, expansion_ratio, *, operations, dtype, device):
    """Two 1x1 convolutions without bias around a SiLU."""
    convolution = {"kernel_size": 1, "bias": False, "dtype": dtype, "device": device}
    return nn.Sequential(
        operations.Conv2d(channels, expansion_ratio * channels, **convolution),
        nn.SiLU(),
        operations.Conv2d(expansion_ratio * channels, channels, **convolution),
    )


class AttentionBlock(nn.Module):
    """Self-attention over the positions of a frame or, with a `context_dim`, cross-attention to the text."""

    def __init__(self, channels, sizes, context_dim=None, **factory):
        super().__init__()
        self.in_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.attention = Attention(channels, channels, context_dim or channels, sizes.head_dim, **factory)
        self.out_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.feed_forward = feed_forward(channels, sizes.expansion_ratio, **factory)

    def forward(self, x, embedding, context=None, mask=None, options=None):
        # All frames of a branch look at the same text, so for it they are one long row of queries.
        branches = x.shape[0] if context is None else context.shape[0]
        tokens = rearrange(self.in_norm(x, embedding), "(b t) c h w -> b (t h w) c", b=branches)
        out = self.attention(tokens, tokens if context is None else context, mask, options)
        x = x + rearrange(out, "b (t h w) c -> (b t) c h w", t=x.shape[0] // branches, h=x.shape[2])
        return x + self.feed_forward(self.out_norm(x, embedding))


def merge_weight(dtype, device):
    """A checkpoint's one-number share of a blend; cast at use, for hosts move layers but not lone numbers."""
    return nn.Parameter(torch.empty(1, dtype=dtype, device=device), requires_grad=False)


class TemporalMix(nn.Module):
    """x + m k (conv(x) - x): a learned share m of a convolution over time, in the rows whose mask k is 1."""

    def __init__(self, channels, *, operations, dtype, device):
        super().__init__()
        self.temporal_merge = merge_weight(dtype, device)
        self.temporal_projection = operations.Conv3d(
            channels, channels, (3, 1, 1), padding=(1, 0, 0), dtype=dtype, device=device
        )

    def forward(self, x, mask):
        mixed = fold_time(self.temporal_projection(unfold_time(x, mask.shape[0])))
        return blend(x, mixed, self.temporal_merge, mask)


def blend(x, other, merge, mask):
    """(1 - m k) x + m k other, with the number m = `merge` and k = `mask` `[b]`, one for every branch of `x`'s rows."""
    share = repeat_rows(merge.to(x) * mask.to(x), x.shape[0])[:, None, None, None]
    return (1 - share) * x + share * other


def unfold_time(x, branches):
    """`[b t, c, h, w]` -> `[b, c, t, h, w]`."""
    return rearrange(x, "(b t) c h w -> b c t h w", b=branches)


def fold_time(x):
    """`[b, c, t, h, w]` -> `[b t, c, h, w]`."""
    return rearrange(x, "b c t h w -> (b t) c h w")


class Block(nn.Module):
    """Norm, SiLU, convolution; up-samples before it, down-samples after it, and mixes over time in between if asked."""

    def __init__(self, in_channels, out_channels, kernel, sizes, sample=None, temporal=False, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        self.group_norm = ConditionalGroupNorm(in_channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.up_sample = ops.ConvTranspose2d(in_channels, in_channels, 2, 2, **weights) if sample == "up" else None
        self.projection = ops.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, **weights)
        self.temporal_projection_new = TemporalMix(out_channels, **factory) if temporal else None
        self.down_sample = ops.Conv2d(out_channels, out_channels, 2, 2, **weights) if sample == "down" else None

    def forward(self, x, embedding, temporal_mask=None):
        x = silu(self.group_norm(x, embedding))
        if self.up_sample:
            x = self.up_sample(x)
        x = self.projection(x)
        if self.temporal_projection_new:
            x = self.temporal_projection_new(x, temporal_mask)
        return self.down_sample(x) if self.down_sample else x


class ResNetBlock(nn.Module):
    """Four Blocks in a bottleneck beside a shortcut; `sample` "up" or "down" doubles or halves height and width."""

    def __init__(self, in_channels, out_channels, sizes, sample=None, temporal=False, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        hidden = max(in_channels, out_channels) // sizes.compression_ratio
        self.resnet_blocks = nn.ModuleList([
            Block(in_channels, hidden, 1, sizes, temporal=temporal, **factory),
            Block(hidden, hidden, 3, sizes, "up" if sample == "up" else None, temporal, **factory),
            Block(hidden, hidden, 3, sizes, "down" if sample == "down" else None, temporal, **factory),
            Block(hidden, out_channels, 1, sizes, temporal=temporal, **factory),
        ])
        shortcut = nn.ModuleDict()
        if sample == "up":
            shortcut["shortcut_up_sample"] = ops.ConvTranspose2d(in_channels, in_channels, 2, 2, **weights)
        if in_channels != out_channels:
            shortcut["shortcut_projection"] = ops.Conv2d(in_channels, out_channels, 1, **weights)
        if sample == "down":
            shortcut["shortcut_down_sample"] = ops.Conv2d(out_channels, out_channels, 2, 2, **weights)
        self.shortcut_names = tuple(shortcut)
        for name, layer in shortcut.items():  # the published keys have no level in between
            self.add_module(name, layer)

    def forward(self, x, embedding, temporal_mask=None):
        shortcut = x
        for name in self.shortcut_names:
            shortcut = getattr(self, name)(shortcut)
        for block in self.resnet_blocks:
            x = block(x, embedding, temporal_mask)
        return shortcut + x


class Level(nn.Module):
    """One resolution: residual blocks with cross-attention between them, self-attention at the outer end.

    `widths` are the (in, middle, out) channels of its blocks. Subclasses add what acts over time.
    """

    def __init__(
        self, widths, sizes, *, up, resample, cross_attention, self_attention, temporal_mix=False, **factory
    ):
        super().__init__()
        self.up = up
        self.attention_width = widths[-1][2] if up else widths[0][0]
        self.self_attention_block = AttentionBlock(self.attention_width, sizes, **factory) if self_attention else None
        self.resnet_attn_blocks = nn.ModuleList()
        for i, (ins, middle, outs) in enumerate(widths):
            first_up = "up" if up and resample and i == 0 else None
            last_down = "down" if not up and resample and i == len(widths) - 1 else None
            block = nn.ModuleDict()  # numbered as published
            block["0"] = ResNetBlock(ins, middle, sizes, first_up, temporal_mix, **factory)
            if cross_attention:
                block["1"] = AttentionBlock(middle, sizes, sizes.context_dim, **factory)
            block["2"] = ResNetBlock(middle, outs, sizes, last_down, temporal_mix, **factory)
            self.resnet_attn_blocks.append(block)


class UNet(nn.Module):
    """What both U-Nets have in common; `level` is the subclass of Level they are made of."""

    def __init__(self, level, num_channels, out_channels, sizes, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        self.context_dim = sizes.context_dim
        self.to_time_embed = NumberEmbedding(sizes.init_channels, sizes.time_embed_dim, **factory)
        self.feature_pooling = AttentionPooling(sizes.time_embed_dim, sizes.context_dim, sizes.head_dim, **factory)
        self.in_layer = ops.Conv2d(num_channels, sizes.init_channels, 3, padding=1, **weights)
        self.down_samples, self.up_samples = nn.ModuleList(), nn.ModuleList()
        deepest = len(sizes.dim_mult) - 1
        channels = [sizes.init_channels, *(sizes.model_channels * mult for mult in sizes.dim_mult)]
        for i, blocks in enumerate(sizes.num_blocks):
            outer, inner = channels[i], channels[i + 1]
            kind = {"resample": i < deepest, "cross_attention": sizes.add_cross_attention[i],
                    "self_attention": sizes.add_self_attention[i], **factory}  # fmt: skip
            down = [(outer, inner, inner)] + [(inner, inner, inner)] * (blocks - 1)
            self.down_samples.append(level(down, sizes, up=False, **kind))
            # The first block going up takes the skip as well; the deepest level has none, its output goes on.
            ins = [inner if i == deepest else 2 * inner] + [inner] * (blocks - 1)
            up = list(zip(ins, ins, [inner] * (blocks - 1) + [outer]))
            self.up_samples.insert(0, level(up, sizes, up=True, **kind))
        self.out_layer = nn.Sequential(
            ops.GroupNorm(sizes.groups, sizes.init_channels, **weights),
            nn.SiLU(),
            ops.Conv2d(sizes.init_channels, out_channels, 3, padding=1, **weights),
        )

    def run_levels(self, x, conditions):
        """Down, up and out: `[b t, init, h, w]` -> `[b t, out, h, w]`; `conditions` go to every level."""
        skips = []
        for level in self.down_samples:
            x = level(x, conditions)
            skips.append(x)
        skips.pop()  # the deepest level's output is x itself
        for i, level in enumerate(self.up_samples):
            x = level(torch.cat([x, skips.pop()], dim=1) if i else x, conditions)
        return self.out_layer(x)
