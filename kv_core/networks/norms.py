"""Normalisation, activation and blends in as few passes over a feature map as possible.

Functions whose names end in an underscore may overwrite their first argument, as torch's do, and return the result.
While gradients are recorded they leave it alone.
"""

from itertools import groupby

import torch
from torch import nn
from torch.nn.functional import group_norm, silu


def repeat_rows(tensor, rows):
    """One row a branch -> one row a feature map; as it is where it has a row for every map already."""
    return tensor.repeat_interleave(rows // tensor.shape[0], dim=0)


def sum_rows(a, b):
    """a + b, where either may have one row a branch and the other a row for every map."""
    rows = max(len(a), len(b))
    return repeat_rows(a, rows) + repeat_rows(b, rows)


def branch_rows(tensor, chosen, branches):
    """The rows that belong to the slice `chosen` of all `branches`."""
    each = len(tensor) // branches
    return tensor[chosen.start * each : chosen.stop * each]


def modulated_group_norm(x, groups, scale, shift, eps=1e-5):
    """group_norm(x) * scale + shift with scale and shift `[b, c]` for every map of x `[b, c, h, w]`.

    All maps side by side are one map of b * c channels in b * groups groups, so that scale and shift are the norm's own
    weights: one pass over the map in place of three.
    """
    rows, channels = x.shape[:2]
    beside = x.reshape(1, rows * channels, *x.shape[2:])
    return group_norm(beside, rows * groups, scale.flatten(), shift.flatten(), eps).view(x.shape)


def silu_(x):
    """SiLU."""
    return silu(x, inplace=not torch.is_grad_enabled())


def add_(x, change):
    """x + change."""
    return x + change if torch.is_grad_enabled() else x.add_(change)


def mix_(x, mix, merge, acting):
    """x + merge (mix(x) - x) in the branches where `acting`, one truth value a branch, holds; x in the others.

    mix(maps, chosen) gives the maps to blend in for the branches `chosen`, a slice. Branches that do not act are not
    computed, except in training.
    """
    share, count = merge.to(x), len(acting)
    if torch.is_grad_enabled():
        share = repeat_rows(share * torch.tensor(acting).to(x), x.shape[0])[:, None, None, None]
        return torch.lerp(x, mix(x, slice(0, count)), share)
    start = 0
    for acts, run in groupby(acting):
        chosen = slice(start, start := start + len(list(run)))
        if acts:
            part = branch_rows(x, chosen, count)
            part.lerp_(mix(part, chosen), share)
    return x


def merge_weight(dtype, device):
    """A checkpoint's one-number share of a blend; cast at use, for hosts move layers but not lone numbers."""
    return nn.Parameter(torch.empty(1, dtype=dtype, device=device), requires_grad=False)


class Activation(nn.Module):
    """`silu_` as a layer."""

    def forward(self, x):
        return silu_(x)


class ConditionalGroupNorm(nn.Module):
    """Group normalisation whose scale and shift come from an embedding `[rows or b, T]` behind its SiLU."""

    def __init__(self, channels, groups, time_embed_dim, *, operations, dtype, device):
        super().__init__()
        self.groups = groups
        self.context_mlp = nn.Sequential(
            nn.Identity(),  # the place of the embedding's SiLU, which is the same for all norms
            operations.Linear(time_embed_dim, 2 * channels, dtype=dtype, device=device),
        )

    def forward(self, x, embedding):
        scale, shift = repeat_rows(self.context_mlp(embedding), x.shape[0]).chunk(2, dim=1)
        return modulated_group_norm(x, self.groups, scale + 1, shift)
