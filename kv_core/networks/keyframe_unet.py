"""The U-Net that draws the first frame and makes the keyframes.

Arkhipkin et al. 2023, "FusionFrames: Efficient Architectural Aspects for Text-to-Video Generation Pipeline", section 3:
Kandinsky 3's text-to-image U-Net with temporal convolutions and temporal attention between its blocks.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import silu

from . import unet as layers
from .attention import Attention, Text, feed_forward
from .norms import Activation, ConditionalGroupNorm, add_, repeat_rows
from .unet import NumberEmbedding, Sizes, fold_time, unfold_time


class TemporalResNetBlock(nn.Module):
    """Four norm-SiLU-convolution steps over time, in a bottleneck, with a residual; x `[b t, c, h, w]`."""

    def __init__(self, channels, sizes, **factory):
        super().__init__()
        conv3d, weights = factory["operations"].Conv3d, {"dtype": factory["dtype"], "device": factory["device"]}
        hidden = channels // sizes.compression_ratio
        shapes = [(channels, hidden, 1), (hidden, hidden, 3), (hidden, hidden, 3), (hidden, channels, 1)]
        self.temporal_resnet_blocks = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        ConditionalGroupNorm(ins, sizes.groups, sizes.time_embed_dim, **factory),
                        Activation(),
                        conv3d(ins, outs, (kernel, 1, 1), padding=(kernel // 2, 0, 0), **weights),
                    ]
                )
                for ins, outs, kernel in shapes
            ]
        )

    def forward(self, x, embedding, branches):
        out = x
        for norm, activation, convolution in self.temporal_resnet_blocks:
            out = activation(norm(out, embedding))
            if convolution.kernel_size[0] == 1:  # each frame for itself
                out = convolution(out[:, :, None])[:, :, 0]
            else:
                out = fold_time(convolution(unfold_time(out, branches)))
        return add_(out, x)


class TemporalAttentionBlock(nn.Module):
    """Attention over the frames at every position; x `[b t, c, h, w]`, embedding `[b t, T]`."""

    def __init__(self, channels, sizes, **factory):
        super().__init__()
        self.temporal_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.temporal_attention = Attention(channels, channels, channels, sizes.head_dim, **factory)
        self.ff_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.feed_forward = feed_forward(channels, sizes.expansion_ratio, **factory)

    def forward(self, x, embedding, branches, options):
        tokens = rearrange(self.temporal_norm(x, embedding), "(b t) c h w -> (b h w) t c", b=branches)
        out = self.temporal_attention(tokens, tokens, options=options)
        x = x + rearrange(out, "(b h w) t c -> (b t) c h w", b=branches, h=x.shape[2])
        return add_(self.feed_forward(self.ff_norm(x, embedding)), x)


class Conditions(NamedTuple):
    """What every level of one call shares.

    time `[b, T]` and temporal `[b t, T]`, None where no layer acts over time, both behind the norms' SiLU; texts;
    branches b; options.
    """

    time: torch.Tensor
    temporal: torch.Tensor | None
    texts: tuple[Text, ...]
    branches: int
    options: object


class Level(layers.Level):
    """One resolution; two temporal blocks per residual pair, and attention over the frames beside self-attention."""

    def __init__(self, widths, sizes, *, up, self_attention, **kind):
        super().__init__(widths, sizes, up=up, self_attention=self_attention, **kind)
        factory = {name: kind[name] for name in ("operations", "dtype", "device")}
        self.temporal_attention_block = (
            TemporalAttentionBlock(self.attention_width, sizes, **factory) if self_attention else None
        )
        for block, (ins, middle, outs) in zip(self.resnet_attn_blocks, widths):
            block["3"] = TemporalResNetBlock(ins if up else middle, sizes, **factory)
            block["4"] = TemporalResNetBlock(middle if up else outs, sizes, **factory)

    def forward(self, x, c):
        if not self.up:
            x = self._temporal_attention(self.attend_to_self(x, c), c)
        for block in self.resnet_attn_blocks:
            # Going up, a temporal block stands before each residual block; going down, behind it.
            x = self._temporal(block["3"], x, c) if self.up else x
            x = block["0"](x, c.time)
            x = x if self.up else self._temporal(block["3"], x, c)
            x = self.attend_to_text(block, x, c)
            x = self._temporal(block["4"], x, c) if self.up else x
            x = block["2"](x, c.time)
            x = x if self.up else self._temporal(block["4"], x, c)
        return self.attend_to_self(self._temporal_attention(x, c), c) if self.up else x

    def _temporal_attention(self, x, c):
        if self.temporal_attention_block is None or c.temporal is None:
            return x
        return self.temporal_attention_block(x, c.temporal, c.branches, c.options)

    def _temporal(self, block, x, c):
        return x if c.temporal is None else block(x, c.temporal, c.branches)


@dataclass(frozen=True)
class KeyframeSizes(Sizes):
    """noise_augmentation and motion_score: whether the checkpoint has embeddings for them."""

    num_channels: int = 9
    out_channels: int = 4
    noise_augmentation: bool = True
    motion_score: bool = True


class KeyframeUNet(layers.UNet):
    """Predicts the noise in the first frame (mode "image") or in all keyframes at once (mode "video").

    `sizes`: of KeyframeSizes, whose defaults are the published ones.
    """

    def __init__(self, *, operations, dtype=None, device=None, **sizes):
        sizes = KeyframeSizes(**sizes)
        factory = {"operations": operations, "dtype": dtype, "device": device}
        super().__init__(Level, sizes, **factory)

        def embedding():
            return NumberEmbedding(sizes.init_channels, sizes.time_embed_dim, **factory)

        self.image_in_layer = operations.Conv2d(
            sizes.num_channels, sizes.init_channels, 3, padding=1, dtype=dtype, device=device
        )
        self.to_temporal_embed = embedding()
        self.temporal_noise_aug_time_encoding = embedding() if sizes.noise_augmentation else None
        self.temporal_motion_score_encoding = embedding() if sizes.motion_score else None

    def forward(self, x, time, texts, *, mode="video", motion_score=None, noise_augmentation=None, options=None):
        """Predicts the noise of `x`.

        x `[b, 9, t, h, w]`: noisy latent 4, condition latent 4, condition mask 1; h and w divisible by 2 once for
        every level but the last. time `[b]`: timesteps. texts: the branches' Texts in order, b rows in all or, where
        the text changes over the frames, b t. motion_score and noise_augmentation `[b, t]` or `[b, 1]`, used in mode
        "video" where the checkpoint has them. `options` reaches the attention call. Returns `[b, 4, t, h, w]`.
        """
        branches, _, frames, _, _ = x.shape
        if mode == "image" and frames != 1:
            raise ValueError(f"image mode draws one frame a branch, but the latent holds {frames}.")
        time_embed = self.feature_pooling(self.to_time_embed(time, x.dtype), texts)
        temporal = None
        if mode == "video":
            temporal = silu(self._temporal_embed(time_embed, branches, frames, motion_score, noise_augmentation))
        conditions = Conditions(silu(time_embed), temporal, texts, branches, options)
        in_layer = self.in_layer if mode == "video" else self.image_in_layer
        return unfold_time(self.run_levels(in_layer(fold_time(x)), conditions), branches)

    def _temporal_embed(self, time_embed, branches, frames, motion_score, noise_augmentation):
        index = torch.arange(frames, device=time_embed.device).expand(branches, frames)
        embedding = self.to_temporal_embed(index, time_embed.dtype)
        if self.temporal_noise_aug_time_encoding:
            embedding = embedding + self.temporal_noise_aug_time_encoding(noise_augmentation, time_embed.dtype)
        if self.temporal_motion_score_encoding:
            embedding = embedding + self.temporal_motion_score_encoding(motion_score, time_embed.dtype)
        return repeat_rows(time_embed, branches * frames) + embedding.flatten(0, 1)
