"""The U-Net that predicts the three frames between every two neighbours.

Arkhipkin et al. 2023, "FusionFrames: Efficient Architectural Aspects for Text-to-Video Generation Pipeline", section 3:
all gaps of a clip are one batch, and the temporal layers run over the gaps.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import silu

from . import unet as layers
from .attention import Attention, Text, feed_forward, split_rows
from .norms import ConditionalGroupNorm, branch_rows, merge_weight, mix_, repeat_rows, sum_rows
from .unet import NumberEmbedding, Sizes, fold_time, sinusoidal, unfold_time

GAP_LENGTHS = 20  # rows in the table of how many frames a gap leaves out


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

    def forward(self, x, embedding, acting, options):
        """Updates x in place (except in training) in the branches where `acting` is true."""

        def over_gaps(x, chosen):
            normed = self.in_norm(x, branch_rows(embedding, chosen, len(acting)))
            tokens = rearrange(normed, "(b g) c h w -> (b h w) g c", b=chosen.stop - chosen.start)
            out = self.attention(tokens, tokens, options=options)
            return rearrange(out, "(b h w) g c -> (b g) c h w", b=chosen.stop - chosen.start, h=x.shape[2])

        def fed(x, chosen):
            return self.feed_forward(self.out_norm(x, branch_rows(embedding, chosen, len(acting))))

        x = mix_(x, over_gaps, self.temporal_merge1, acting)
        return mix_(x, fed, self.temporal_merge2, acting)


class Conditions(NamedTuple):
    """What every level of one call shares.

    time `[b, T]`, behind the norms' SiLU; texts; acting: of every branch, whether its temporal layers act; options.
    """

    time: torch.Tensor
    texts: tuple[Text, ...]
    acting: tuple[bool, ...]
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
            x = block["0"](x, c.time, c.acting)
            x = self.attend_to_text(block, x, c)
            x = block["2"](x, c.time, c.acting)
        return self._attention(x, c) if self.up else x

    def _attention(self, x, c):
        x = self.attend_to_self(x, c)
        if self.temporal_attention_block:
            x = self.temporal_attention_block(x, c.time, c.acting, c.options)
        return x


@dataclass(frozen=True)
class InterpolationSizes(Sizes):
    """The four truth values say which of its optional parts a checkpoint has."""

    num_channels: int = 20
    out_channels: int = 12
    add_temporal_attention: bool = True
    use_perturbation_time_embed: bool = True
    pass_skip_frames: bool = True
    merge_perturbation_time_with_context: bool = False


class InterpolationUNet(layers.UNet):
    """Predicts the velocity of the three frames in every gap.

    `sizes`: of InterpolationSizes, whose defaults are the published ones.
    """

    def __init__(self, *, operations, dtype=None, device=None, **sizes):
        sizes = InterpolationSizes(**sizes)
        factory = {"operations": operations, "dtype": dtype, "device": device}
        super().__init__(partial(Level, temporal_attention=sizes.add_temporal_attention), sizes, **factory)
        self.perturbation_to_time_embed = self.time_embed_merge = None
        if sizes.use_perturbation_time_embed:
            self.time_embed_merge = merge_weight(dtype, device)
            self.perturbation_to_time_embed = NumberEmbedding(sizes.init_channels, sizes.time_embed_dim, **factory)
        self.skip_embeddings = self.skip_merge = None
        if sizes.pass_skip_frames:
            self.skip_merge = merge_weight(dtype, device)
            self.skip_embeddings = operations.Embedding(GAP_LENGTHS, sizes.time_embed_dim, dtype=dtype, device=device)
        self.time_embed_context_merge = None
        if sizes.merge_perturbation_time_with_context:
            self.time_embed_context_merge = merge_weight(dtype, device)

    def forward(self, x, time, texts, *, temporal_mask, skip_frames=None, perturbation_time=None, options=None):
        """Predicts the velocity of the middle frames.

        x `[b, 20, g, h, w]`, g gaps: left frame 4, three frames 3x4, right frame 4. time `[b]`: timesteps. texts: the
        branches' Texts in order, b rows in all or, where the text changes over the gaps, b g. skip_frames `[b]` (0..19)
        or `[b g]`, and perturbation_time `[b]`, are needed where the checkpoint has their embeddings. temporal_mask: b
        truth values, whether the temporal layers act; they do not in an unconditional branch. `options` reaches the
        attention call. Returns `[b, 12, g, h, w]`.
        """
        if self.time_embed_context_merge is not None:
            texts = self._perturbed(texts, perturbation_time)
        time_embed = self.feature_pooling(self._time_embed(time, skip_frames, perturbation_time, x.dtype), texts)
        conditions = Conditions(silu(time_embed), texts, tuple(map(bool, temporal_mask)), options)
        return unfold_time(self.run_levels(self.in_layer(fold_time(x)), conditions), x.shape[0])

    def _perturbed(self, texts, time):
        """The texts with a share of the perturbation time's sinusoids `[b, d]` added to every token."""
        like = texts[0].tokens
        shift = self.time_embed_context_merge.to(like) * sinusoidal(time, self.context_dim, like.dtype)
        rows = max(len(shift), sum(len(text.tokens) for text in texts))
        return tuple(
            text._replace(tokens=text.tokens + part[:, None], mean=text.mean + part[:, None])
            for text, part in zip(texts, split_rows(repeat_rows(shift, rows), texts))
        )

    def _time_embed(self, time, skip_frames, perturbation_time, dtype):
        embedding = self.to_time_embed(time, dtype)
        if self.perturbation_to_time_embed:
            share = self.time_embed_merge.to(embedding)
            perturbation = self.perturbation_to_time_embed(perturbation_time, dtype)
            embedding = sum_rows(share * perturbation, (1 - share) * embedding)
        if self.skip_embeddings:
            skipped = self.skip_embeddings(skip_frames).to(dtype)
            embedding = sum_rows(embedding, self.skip_merge.to(embedding) * skipped)
        return embedding
