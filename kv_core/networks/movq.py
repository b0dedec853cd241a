"""MoVQ: the autoencoder between pixels and latents, for images and, with temporal layers in its decoder, for video.

Zheng et al. 2022, "MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation", section 3.2 (spatially
conditional normalisation); Arkhipkin et al. 2023, "FusionFrames", section 3 (temporal decoder). Nothing is quantized:
the latents are continuous and unscaled.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import interpolate, pad

from .norms import add_, merge_weight, mix_, silu_

NORM_GROUPS = 32


class Norm(nn.Module):
    """Group norm; in decoders its scale and shift are 1x1 convolutions of the latent z `[b or 1, z, h, w]`."""

    def __init__(self, channels, z_channels=None, *, operations, dtype, device):
        super().__init__()
        weights = {"dtype": dtype, "device": device}
        self.norm_layer = operations.GroupNorm(NORM_GROUPS, channels, eps=1e-6, **weights)
        if z_channels:
            self.conv_y = operations.Conv2d(z_channels, channels, 1, **weights)
            self.conv_b = operations.Conv2d(z_channels, channels, 1, **weights)

    def forward(self, x, z=None):
        x = self.norm_layer(x)
        if z is None:
            return x
        # The latent is up-sampled to the map's size by repeating; here along the rows only, down the columns it is seen
        # repeated. 1x1 convolutions commute with that and are cheaper before it.
        repeats = x.shape[-1] // z.shape[-1]
        scale, shift = (conv(z).repeat_interleave(repeats, dim=3)[..., None, :] for conv in (self.conv_y, self.conv_b))
        rows = x.unflatten(2, (z.shape[2], repeats))
        rows = rows * scale + shift if torch.is_grad_enabled() else rows.mul_(scale).add_(shift)
        return rows.view(x.shape)


# On a CPU, torch 2 is slow with float32 maps [1, c, t, h, w] whose first four sizes multiply to no more than this.
SLOW = 20480


def _over_chunk(convolution, x):
    """A 3x3x3 convolution of x `[1, c, t, h, w]`; where torch would be slow, of its two halves, which overlap."""
    height = x.shape[3]
    if x.device.type != "cpu" or x.dtype != torch.float32 or x[..., 0].numel() > SLOW or height % 2:
        return convolution(x)
    half = height // 2
    halves = torch.cat([x[:, :, :, : half + 1], x[:, :, :, half - 1 :]])
    upper, lower = convolution(halves).split(1)
    return torch.cat([upper[:, :, :, :half], lower[:, :, :, 1:]], dim=3)


class ResNetBlock(nn.Module):
    """Two norm-SiLU-convolution steps with a shortcut; `temporal` blends a convolution over the frames into each.

    x is `[b, c, h, w]`; with `temporal`, b is the frames of one chunk.
    """

    def __init__(self, in_channels, out_channels, z_channels=None, temporal=False, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        self.norm1 = Norm(in_channels, z_channels, **factory)
        self.conv1 = ops.Conv2d(in_channels, out_channels, 3, padding=1, **weights)
        self.norm2 = Norm(out_channels, z_channels, **factory)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1, **weights)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = ops.Conv2d(in_channels, out_channels, 1, **weights)
        self.temporal_projection1 = self.temporal_projection2 = self.temporal_merge1 = self.temporal_merge2 = None
        if temporal:
            self.temporal_projection1 = ops.Conv3d(out_channels, out_channels, 3, padding=1, **weights)
            self.temporal_projection2 = ops.Conv3d(out_channels, out_channels, 3, padding=1, **weights)
            self.temporal_merge1 = merge_weight(**weights)
            self.temporal_merge2 = merge_weight(**weights)

    def forward(self, x, z=None):
        h = self.conv1(silu_(self.norm1(x, z)))
        h = self._over_time(h, self.temporal_projection1, self.temporal_merge1)
        h = self.conv2(silu_(self.norm2(h, z)))
        h = self._over_time(h, self.temporal_projection2, self.temporal_merge2)
        return add_(h, self.nin_shortcut(x) if self.nin_shortcut else x)

    def _over_time(self, h, projection, merge):
        def mix(h, chosen):
            return rearrange(_over_chunk(projection, rearrange(h, "t c h w -> 1 c t h w")), "1 c t h w -> t c h w")

        return h if projection is None else mix_(h, mix, merge, (True,))


class AttentionBlock(nn.Module):
    """One-headed attention over the positions of a frame or, with `temporal`, over the frames at every position."""

    def __init__(self, channels, z_channels=None, temporal=False, *, operations, dtype, device):
        super().__init__()
        weights = {"dtype": dtype, "device": device}
        self.temporal = temporal
        self.norm = Norm(channels, z_channels, operations=operations, **weights)
        self.q = operations.Conv2d(channels, channels, 1, **weights)
        self.k = operations.Conv2d(channels, channels, 1, **weights)
        self.v = operations.Conv2d(channels, channels, 1, **weights)
        self.proj_out = operations.Conv2d(channels, channels, 1, **weights)
        self.attend = operations.attention

    def forward(self, x, z=None):
        # As the weights were trained: over time the norm sees no latent, over space every item sees that of item 0.
        normed = self.norm(x, None if self.temporal or z is None else z[:1])
        pattern = "(h w) t c" if self.temporal else "t (h w) c"
        q, k, v = (rearrange(conv(normed), f"t c h w -> {pattern}") for conv in (self.q, self.k, self.v))
        out = rearrange(self.attend(q, k, v, 1), f"{pattern} -> t c h w", t=x.shape[0], h=x.shape[2])
        return add_(x, self.proj_out(out))  # x comes from a block, and is kept by nobody


class Downsample(nn.Module):
    def __init__(self, channels, *, operations, dtype, device):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, dtype=dtype, device=device)

    def forward(self, x):
        return self.conv(pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels, *, operations, dtype, device):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, dtype=dtype, device=device)

    def forward(self, x):
        return self.conv(interpolate(x, scale_factor=2.0, mode="nearest"))


class Middle(nn.Module):
    """Residual block, attention (over space, then time), residual block at the lowest resolution."""

    def __init__(self, channels, z_channels=None, temporal=False, flicker=False, **factory):
        super().__init__()
        self.block_1 = ResNetBlock(channels, channels, z_channels, temporal, **factory)
        if flicker:  # used in training only, but part of the file
            weights = {"dtype": factory["dtype"], "device": factory["device"]}
            self.block_1.temporal_flicker_proj = factory["operations"].Linear(1, channels, **weights)
        self.attn_1 = AttentionBlock(channels, z_channels, **factory)
        self.temporal_attn_1 = AttentionBlock(channels, z_channels, temporal=True, **factory) if temporal else None
        self.block_2 = ResNetBlock(channels, channels, z_channels, temporal, **factory)

    def forward(self, x, z=None):
        x = self.attn_1(self.block_1(x, z), z)
        if self.temporal_attn_1:
            x = self.temporal_attn_1(x)
        return self.block_2(x, z)


class Level(nn.Module):
    """Residual blocks of one resolution, with attention behind each where the level has it."""

    def __init__(self, ins, outs, blocks, attention, z_channels=None, temporal=False, **factory):
        super().__init__()
        self.block, self.attn, self.temporal_attn = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for i in range(blocks):
            self.block.append(ResNetBlock(outs if i else ins, outs, z_channels, temporal, **factory))
            if attention:
                self.attn.append(AttentionBlock(outs, z_channels, **factory))
            if attention and temporal:
                self.temporal_attn.append(AttentionBlock(outs, z_channels, temporal=True, **factory))

    def forward(self, x, z=None):
        for i, block in enumerate(self.block):
            x = block(x, z)
            if len(self.attn):
                x = self.attn[i](x, z)
            if len(self.temporal_attn):
                x = self.temporal_attn[i](x)
        return x


class Encoder(nn.Module):
    def __init__(self, sizes, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        widths = [sizes.ch, *(sizes.ch * mult for mult in sizes.ch_mult)]
        deepest = len(sizes.ch_mult) - 1
        self.conv_in = ops.Conv2d(sizes.in_channels, sizes.ch, 3, padding=1, **weights)
        self.down = nn.ModuleList()
        for i, (ins, outs) in enumerate(zip(widths, widths[1:])):
            level = Level(ins, outs, sizes.num_res_blocks, i == deepest, **factory)
            level.downsample = Downsample(outs, **factory) if i < deepest else None
            self.down.append(level)
        self.mid = Middle(widths[-1], **factory)
        self.norm_out = Norm(widths[-1], **factory)
        self.conv_out = ops.Conv2d(widths[-1], sizes.z_channels, 3, padding=1, **weights)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if level.downsample:
                x = level.downsample(x)
        return self.conv_out(silu_(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, sizes, **factory):
        super().__init__()
        ops, weights = factory["operations"], {"dtype": factory["dtype"], "device": factory["device"]}
        outs, z_channels = [sizes.ch * mult for mult in sizes.ch_mult], sizes.z_channels
        deepest, temporal = len(sizes.ch_mult) - 1, sizes.temporal
        self.conv_in = ops.Conv2d(z_channels, outs[-1], 3, padding=1, **weights)
        self.mid = Middle(outs[-1], z_channels, temporal, sizes.flicker_augmentation, **factory)
        self.up = nn.ModuleList()
        for i, (ins, out) in enumerate(zip([*outs[1:], outs[-1]], outs)):
            level = Level(ins, out, sizes.num_res_blocks + 1, i == deepest, z_channels, temporal, **factory)
            level.upsample = Upsample(out, **factory) if i else None
            self.up.append(level)
        self.norm_out = Norm(outs[0], z_channels, **factory)
        self.conv_out = ops.Conv2d(outs[0], sizes.out_ch, 3, padding=1, **weights)

    def forward(self, x, z):
        x = self.mid(self.conv_in(x), z)
        for level in reversed(self.up):
            x = level(x, z)
            if level.upsample:
                x = level.upsample(x)
        return self.conv_out(silu_(self.norm_out(x, z)))


@dataclass(frozen=True)
class MoVQSizes:
    """The defaults are the published sizes. temporal: whether this is the video decoder, whose batch is the frames of
    one chunk; flicker_augmentation: whether the file holds a layer used in training.
    """

    ch: int = 256
    ch_mult: tuple[int, ...] = (1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    in_channels: int = 3
    out_ch: int = 3
    temporal: bool = False
    flicker_augmentation: bool = False


class MoVQ(nn.Module):
    """Encoder and decoder; `sizes`: of MoVQSizes."""

    def __init__(self, *, operations, dtype=None, device=None, **sizes):
        super().__init__()
        sizes = MoVQSizes(**sizes)
        factory = {"operations": operations, "dtype": dtype, "device": device}
        self.encoder, self.decoder = Encoder(sizes, **factory), Decoder(sizes, **factory)
        self.quant_conv = operations.Conv2d(sizes.z_channels, sizes.z_channels, 1, dtype=dtype, device=device)
        self.post_quant_conv = operations.Conv2d(sizes.z_channels, sizes.z_channels, 1, dtype=dtype, device=device)

    def encode(self, pixels):
        """Pixels `[b, 3, H, W]` in [-1, 1], H and W multiples of 8 -> latents `[b, 4, H/8, W/8]`."""
        return self.quant_conv(self.encoder(pixels))

    def decode(self, latent):
        """Latents `[b, 4, h, w]` -> pixels `[b, 3, 8h, 8w]`, about [-1, 1].

        Items of a batch are not independent: attention's norms see the first item's latent. Decode images singly.
        """
        return self.decoder(self.post_quant_conv(latent), latent)


def decode_chunks(frames):
    """Lengths of the chunks in which the video decoder takes a clip, as published: about four frames, then the rest."""
    size = -(-frames // max(frames // 4, 1))
    return [min(size, frames - start) for start in range(0, frames, size)]
