"""The U-Net that predicts the three frames between every two neighbours.

Arkhipkin et al. 2023, "FusionFrames: Efficient Architectural Aspects for Text-to-Video Generation Pipeline", section 3:
all gaps of a clip are one batch, and the temporal layers run over the gaps.
"""

from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn

from . import layers
from .layers import (
    Attention,
    ConditionalGroupNorm,
    NumberEmbedding,
    Sizes,
    blend,
    feed_forward,
    fold_time,
    merge_weight,
    sinusoidal,
    unfold_time,
)
from .operations import additive_mask

SKIP_FRAMES = 20  # rows in the table of frame gaps


class TemporalAttentionBlock(nn.Module):
    """Attention over the gaps at every position, blended in rather than added; x `[b g, c, h, w]`."""

    def __init__(self, channels, sizes, **factory):
        super().__init__()
        self.temporal_merge1 = merge_weight(factory["dtype"], factory["device"])
        self.temporal_merge2 = merge_weight(factory["dtype"], factory["device"])
        self.in_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.attention = Attention(channels, channels, channels, sizes.head_dim, **factory)
        self.out_norm = ConditionalGroupNorm(channels, sizes.groups, sizes.time_embed_dim, **factory)
        self.feed_forward = feed_forward(channels, sizes.expansion_ratio, **factory)

    def forward(self, x, embedding, mask, options):
        branches = mask.shape[0]
        tokens = rearrange(self.in_norm(x, embedding), "(b g) c h w -> (b h w) g c", b=branches)
        out = self.attention(tokens, tokens, options=options)
        out = rearrange(out, "(b h w) g c -> (b g) c h w", b=branches, h=x.shape[2])
        x = blend(x, out, self.temporal_merge1, mask)
        return blend(x, self.feed_forward(self.out_norm(x, embedding)), self.temporal_merge2, mask)


class Conditions(NamedTuple):
    """What every level of one call shares: time `[b, T]`, context `[b, n, d]`, mask (additive), temporal_mask `[b]`."""

    time: torch.Tensor
    context: torch.Tensor
    mask: torch.Tensor
    temporal_mask: torch.Tensor
    options: object


class Level(layers.Level):
    """One resolution; every convolution mixes over time, and attention over the gaps follows self-attention."""

    def __init__(self, widths, sizes, *, self_attention, temporal_attention, **kind):
        super().__init__(widths, sizes, self_attention=self_attention, temporal_mix=True, **kind)
        factory = {name: kind[name] for name in ("operations", "dtype", "device")}
        self.temporal_attention_block = (
            TemporalAttentionBlock(self.attention_width, sizes, **factory)
            if self_attention and temporal_attention
            else None
        )

    def forward(self, x, c):
        x = x if self.up else self._attention(x, c)
        for block in self.resnet_attn_blocks:
            x = block["0"](x, c.time, c.temporal_mask)
            if "1" in block:
                x = block["1"](x, c.time, c.context, c.mask, c.options)
            x = block["2"](x, c.time, c.temporal_mask)
        return self._attention(x, c) if self.up else x

    def _attention(self, x, c):
        if self.self_attention_block:
            x = self.self_attention_block(x, c.time, options=c.options)
        if self.temporal_attention_block:
            x = self.temporal_attention_block(x, c.time, c.temporal_mask, c.options)
        return x


class InterpolationUNet(layers.UNet):
    """Predicts the velocity of the three frames in every gap.

    The defaults are the published sizes, `sizes` the fields of layers.Sizes. The four options say which of its
    optional parts a checkpoint has.
    """

    def __init__(
        self,
        num_channels=20,
        out_channels=12,
        add_temporal_attention=True,
        use_perturbation_time_embed=True,
        pass_skip_frames=True,
        merge_perturbation_time_with_context=False,
        *,
        operations,
        dtype=None,
        device=None,
        **sizes,
    ):
        sizes = Sizes(**sizes)
        factory = {"operations": operations, "dtype": dtype, "device": device}
        level = partial(Level, temporal_attention=add_temporal_attention)
        super().__init__(level, num_channels, out_channels, sizes, **factory)
        self.perturbation_to_time_embed = self.time_embed_merge = None
        if use_perturbation_time_embed:
            self.time_embed_merge = merge_weight(dtype, device)
            self.perturbation_to_time_embed = NumberEmbedding(sizes.init_channels, sizes.time_embed_dim, **factory)
        self.skip_embeddings = self.skip_merge = None
        if pass_skip_frames:
            self.skip_merge = merge_weight(dtype, device)
            self.skip_embeddings = operations.Embedding(SKIP_FRAMES, sizes.time_embed_dim, dtype=dtype, device=device)
        self.time_embed_context_merge = merge_weight(dtype, device) if merge_perturbation_time_with_context else None

    def forward(
        self, x, time, context, context_mask, *, temporal_mask, skip_frames=None, perturbation_time=None, options=None
    ):
        """Predicts the velocity of the middle frames.

        x `[b, 20, g, h, w]`, g gaps: left frame 4, three frames 3x4, right frame 4. time `[b]`: timesteps. context
        `[b, n, d]`, context_mask `[b, n]` (nonzero: a real token). skip_frames `[b]` (0..19) and perturbation_time
        `[b]` are needed where the checkpoint has their embeddings. All of these may also have one row a gap,
        `[b g, ...]`. temporal_mask `[b]`: 1 where the temporal layers act, 0 in an unconditional branch. `options`
        reaches the attention call. Returns `[b, 12, g, h, w]`.
        """
        branches = x.shape[0]
        mask = additive_mask(context_mask, x.dtype)
        time_embed = self._time_embed(time, skip_frames, perturbation_time, x.dtype)
        if self.time_embed_context_merge is not None:
            shift = sinusoidal(perturbation_time, self.context_dim, context.dtype)
            context = context + self.time_embed_context_merge.to(context) * shift[:, None]
        time_embed = self.feature_pooling(time_embed, context, mask, options)
        conditions = Conditions(
            time=time_embed, context=context, mask=mask, temporal_mask=temporal_mask, options=options
        )
        return unfold_time(self.run_levels(self.in_layer(fold_time(x)), conditions), branches)

    def _time_embed(self, time, skip_frames, perturbation_time, dtype):
        embedding = self.to_time_embed(time, dtype)
        if self.perturbation_to_time_embed:
            share = self.time_embed_merge.to(embedding)
            embedding = share * self.perturbation_to_time_embed(perturbation_time, dtype) + (1 - share) * embedding
        if self.skip_embeddings:
            embedding = embedding + self.skip_merge.to(embedding) * self.skip_embeddings(skip_frames).to(dtype)
        return embedding
