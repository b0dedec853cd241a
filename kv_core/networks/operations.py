"""The layers and the attention call every network here is built from.

A network takes `operations`, a namespace with the names below, and never creates a layer with weights in any other
way. A host hands in its own namespace to stream weights from CPU memory, store them in 8 bit or patch them.
"""

import torch
from einops import rearrange
from torch import nn


def scaled_dot_product_attention(q, k, v, heads, mask=None, options=None):
    """softmax(q k^T / sqrt(d)) v over `heads` heads.

    q is `[b, n, heads * d]`, k and v are `[b, m, heads * d]`; `mask` is added to the scores and broadcasts to
    `[b, heads, n, m]`. `options` is whatever the caller of a network's forward handed in for its host; unused here.
    Returns `[b, n, heads * d]`.
    """
    q, k, v = (rearrange(x, "b n (heads d) -> b heads n d", heads=heads) for x in (q, k, v))
    out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out, "b heads n d -> b n (heads d)")


def additive_mask(keep, dtype):
    """Turns a `[b, n]` mask (nonzero: a token to attend to) into the `[b, 1, 1, n]` term added to attention scores."""
    excluded = torch.finfo(dtype).min
    return torch.zeros(keep.shape, dtype=dtype, device=keep.device).masked_fill(keep == 0, excluded)[:, None, None]


class _Uninitialised:
    # Weights always come from a file, so drawing random ones first would only cost time.
    def reset_parameters(self):
        return None


class TorchOperations:
    """The layers of torch.nn, left uninitialised."""

    class Linear(_Uninitialised, nn.Linear):
        pass

    class Conv2d(_Uninitialised, nn.Conv2d):
        pass

    class Conv3d(_Uninitialised, nn.Conv3d):
        pass

    class ConvTranspose2d(_Uninitialised, nn.ConvTranspose2d):
        pass

    class GroupNorm(_Uninitialised, nn.GroupNorm):
        pass

    class LayerNorm(_Uninitialised, nn.LayerNorm):
        pass

    class RMSNorm(_Uninitialised, nn.RMSNorm):
        pass

    class Embedding(_Uninitialised, nn.Embedding):
        pass

    attention = staticmethod(scaled_dot_product_attention)
