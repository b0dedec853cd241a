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

from .attention import AttentionPooling, CrossAttentionBlock, SelfAttentionBlock
from .norms import Activation, ConditionalGroupNorm, add_, merge_weight, mix_, silu_


@dataclass(frozen=True)
class Sizes:
    """The sizes both U-Nets share; the defaults are the published ones, the tuples run from the outermost level.

    Each U-Net adds its own, num_channels in and out_channels out among them.
    """

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


class NumberEmbedding(nn.Sequential):
    """A number (timestep, frame index, score) `[...]` -> `[..., T]`; the layers are numbered as published."""

    def __init__(self, init_channels, time_embed_dim, *, operations, dtype, device):
        super().__init__(
            nn.Identity(),  # the place of the sinusoids, which have no weights
            operations.Linear(init_channels, time_embed_dim, dtype=dtype, device=device),
            Activation(),
            operations.Linear(time_embed_dim, time_embed_dim, dtype=dtype, device=device),
        )
        self.init_channels = init_channels

    def forward(self, values, dtype):
        return super().forward(sinusoidal(values, self.init_channels, dtype))


class TemporalMix(nn.Module):
    """x + m k (conv(x) - x): a learned share m of a convolution over time, in the branches whose k is 1."""

    def __init__(self, channels, *, operations, dtype, device):
        super().__init__()
        self.temporal_merge = merge_weight(dtype, device)
        self.temporal_projection = operations.Conv3d(
            channels, channels, (3, 1, 1), padding=(1, 0, 0), dtype=dtype, device=device
        )

    def forward(self, x, acting):
        def over_time(x, chosen):
            return fold_time(self.temporal_projection(unfold_time(x, chosen.stop - chosen.start)))

        return mix_(x, over_time, self.temporal_merge, acting)


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

    def forward(self, x, embedding, acting=None):
        x = silu_(self.group_norm(x, embedding))
        if self.up_sample:
            x = self.up_sample(x)
        x = self.projection(x)
        if self.temporal_projection_new:
            x = self.temporal_projection_new(x, acting)
        return self.down_sample(x) if self.down_sample else x


class ResNetBlock(nn.Module):
    """Four Blocks in a bottleneck beside a shortcut; `sample` "up" or "down" doubles or halves height and width."""

    def __init__(self, in_channels, out_channels, sizes, sample=None, temporal=False, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        hidden = max(in_channels, out_channels) // sizes.compression_ratio
        self.resnet_blocks = nn.ModuleList(
            [
                Block(in_channels, hidden, 1, sizes, temporal=temporal, **factory),
                Block(hidden, hidden, 3, sizes, "up" if sample == "up" else None, temporal, **factory),
                Block(hidden, hidden, 3, sizes, "down" if sample == "down" else None, temporal, **factory),
                Block(hidden, out_channels, 1, sizes, temporal=temporal, **factory),
            ]
        )
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

    def forward(self, x, embedding, acting=None):
        out = x
        for block in self.resnet_blocks:
            out = block(out, embedding, acting)
        for name in self.shortcut_names:
            x = getattr(self, name)(x)
        return add_(out, x)


class Level(nn.Module):
    """One resolution: residual blocks with cross-attention between them, self-attention at the outer end.

    `widths` are the (in, middle, out) channels of its blocks. Subclasses add what acts over time.
    """

    def __init__(self, widths, sizes, *, up, resample, cross_attention, self_attention, temporal_mix=False, **factory):
        super().__init__()
        self.up = up
        self.attention_width = widths[-1][2] if up else widths[0][0]
        self.self_attention_block = (
            SelfAttentionBlock(self.attention_width, sizes, **factory) if self_attention else None
        )
        self.resnet_attn_blocks = nn.ModuleList()
        for i, (ins, middle, outs) in enumerate(widths):
            first_up = "up" if up and resample and i == 0 else None
            last_down = "down" if not up and resample and i == len(widths) - 1 else None
            block = nn.ModuleDict()  # numbered as published
            block["0"] = ResNetBlock(ins, middle, sizes, first_up, temporal_mix, **factory)
            if cross_attention:
                block["1"] = CrossAttentionBlock(middle, sizes, sizes.context_dim, **factory)
            block["2"] = ResNetBlock(middle, outs, sizes, last_down, temporal_mix, **factory)
            self.resnet_attn_blocks.append(block)

    def attend_to_self(self, x, c):
        """Self-attention where the level has it; c: time and options."""
        return self.self_attention_block(x, c.time, c.options) if self.self_attention_block else x

    def attend_to_text(self, block, x, c):
        """A block's cross-attention where it has any; c: time, texts and options."""
        return block["1"](x, c.time, c.texts, c.options) if "1" in block else x


class UNet(nn.Module):
    """What both U-Nets have in common; `level` is the subclass of Level they are made of."""

    def __init__(self, level, sizes, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        self.context_dim = sizes.context_dim
        self.to_time_embed = NumberEmbedding(sizes.init_channels, sizes.time_embed_dim, **factory)
        self.feature_pooling = AttentionPooling(sizes.time_embed_dim, sizes.context_dim, sizes.head_dim, **factory)
        self.in_layer = ops.Conv2d(sizes.num_channels, sizes.init_channels, 3, padding=1, **weights)
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
            Activation(),
            ops.Conv2d(sizes.init_channels, sizes.out_channels, 3, padding=1, **weights),
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
