"""The networks' forward passes written straight down, one operation after another: what the fast ones must equal."""

import torch
from torch.nn.functional import group_norm, interpolate, silu

from kv_core.networks import attention, interpolation_unet, keyframe_unet, movq, norms, unet
from kv_core.networks.attention import Text
from kv_core.networks.norms import repeat_rows
from kv_core.networks.unet import fold_time, unfold_time


def use(monkeypatch):
    """Puts the functions here in the place of kv_core's."""
    for module in (attention, interpolation_unet, keyframe_unet, unet, movq, norms):
        for function in (modulated_group_norm, silu_, add_, mix_):
            if hasattr(module, function.__name__):
                monkeypatch.setattr(module, function.__name__, function)
    monkeypatch.setattr(movq.Norm, "forward", movq_norm)
    monkeypatch.setattr(movq, "_over_chunk", lambda convolution, x: convolution(x))
    monkeypatch.setattr(keyframe_unet.TemporalResNetBlock, "forward", temporal_block)
    monkeypatch.setattr(attention.Attention, "forward", attend)
    monkeypatch.setattr(attention.CrossAttentionBlock, "forward", cross_attention_block)
    monkeypatch.setattr(Text, "unpadded", lambda context, mask: (Text.padded(context, mask),))


def modulated_group_norm(x, groups, scale, shift, eps=1e-5):
    return group_norm(x, groups, eps=eps) * scale[:, :, None, None] + shift[:, :, None, None]


def silu_(x):
    return silu(x)


def add_(x, change):
    return x + change


def mix_(x, mix, merge, acting):
    share = repeat_rows(merge.to(x) * torch.tensor(acting).to(x), x.shape[0])[:, None, None, None]
    return (1 - share) * x + share * mix(x, slice(0, len(acting)))


def movq_norm(self, x, z=None):
    x = self.norm_layer(x)
    if z is None:
        return x
    scale, shift = (interpolate(conv(z), x.shape[-2:], mode="nearest") for conv in (self.conv_y, self.conv_b))
    return x * scale + shift


def temporal_block(self, x, embedding, branches):
    out = x
    for norm, activation, convolution in self.temporal_resnet_blocks:
        out = fold_time(convolution(unfold_time(activation(norm(out, embedding)), branches)))
    return x + out


def attend(self, x, context, mask=None, options=None):
    q, k, v = self.to_query(x), self.to_key(context), self.to_value(context)
    return self.output_layer(self.attend(q, k, v, self.heads, mask, options))


def cross_attention_block(self, x, embedding, texts, options=None):
    [text] = texts
    x = x + self._attend(x, repeat_rows(embedding, x.shape[0]), text, options)
    return x + self.feed_forward(self.out_norm(x, embedding))
