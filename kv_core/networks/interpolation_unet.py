"""The U-Net that predicts the three frames between every two neighbours.

Arkhipkin et al. 2023, "FusionFrames: Efficient Architectural Aspects for Text-to-Video Generation Pipeline", section 3:
all gaps of a clip are one batch, and the temporal layers run over the gaps.
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import torch
from einops import rearrange
from torch import nn
from torch.nn.functional import silu

from . import unet as layers
from .attention import Attention, Reading, feed_forward
from .norms import ConditionalGroupNorm, branch_rows, merge_weight, mixed, sum_rows
from .unet import ALL_ON, NumberEmbedding, Off, Sizes, fold_time, sinusoidal, unfold_time

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

    def forward(self, x, embedding, acting, options):
        """Changes x, but for training; `acting` says in which branches."""

        def over_gaps(x, chosen):
            normed = self.in_norm(x, branch_rows(embedding, chosen, len(acting)))
            tokens = rearrange(normed, "(b g) c h w -> (b h w) g c", b=chosen.stop - chosen.start)
            out = self.attention(tokens, tokens, options=options)
            return rearrange(out, "(b h w) g c -> (b g) c h w", b=chosen.stop - chosen.start, h=x.shape[2])

        def fed(x, chosen):
            return self.feed_forward(self.out_norm(x, branch_rows(embedding, chosen, len(acting))))

        x = mixed(x, over_gaps, self.temporal_merge1, acting)
        return mixed(x, fed, self.temporal_merge2, acting)


class Conditions(NamedTuple):
    """What every level of one call shares.

    time `[b, T]`, behind the norms' SiLU; readings: of the text, an iterator over the blocks in the order of their use;
    acting: of every branch, whether its temporal layers act; off; options.
    """

    time: torch.Tensor
    readings: Iterator[tuple[Reading, ...]]
    acting: tuple[bool, ...]
    off: Off
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

    def read_text(self, context, mask, perturbation_time=None):
        """As UNet's; perturbation_time `[b]`, left out 0, is for checkpoints that add it to the text."""
        if self.time_embed_context_merge is not None:
            perturbation_time = context.new_zeros(1) if perturbation_time is None else perturbation_time
            shift = sinusoidal(perturbation_time, self.context_dim, context.dtype)
            context = context + self.time_embed_context_merge.to(context) * shift[:, None]
        return super().read_text(context, mask)

    def forward(
        self, x, time, text, *, temporal_mask, skip_frames=None, perturbation_time=None, off=ALL_ON, options=None
    ):
        """Predicts the velocity of the middle frames.

        x `[b, 20, g, h, w]`, g gaps: left frame 4, three frames 3x4, right frame 4. time `[b]`: timesteps. text: what
        `read_text` made of the branches' texts. skip_frames `[b]` (0..19) and perturbation_time `[b]` are needed where
        the checkpoint has their embeddings. Each of these may also have one row a gap, `[b g, ...]`. temporal_mask: b
        truth values, whether the temporal layers act; they do not in an unconditional branch. off: what is left out.
        `options` reaches the attention call. Returns `[b, 12, g, h, w]`.
        """
        time_embed = self._time_embed(time, skip_frames, perturbation_time, x.dtype)
        conditions = Conditions(
            time=silu(self.time_and_text(time_embed, text, off)), readings=iter(text.readings),
            acting=tuple(bool(acts) and not off.temporal for acts in temporal_mask), off=off, options=options,
        )  # fmt: skip
        return unfold_time(self.run_levels(self.in_layer(fold_time(x)), conditions), x.shape[0])

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
