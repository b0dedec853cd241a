"""What stands in for Flan-UL2's own training: an encoder of captions that keeps what they say and what they leave open.

The published encoder is a large language model that the U-Nets' training leaves as it is. So here too: the tiny encoder
learns to tell, from the mean of its context, each thing a caption names, and is frozen then.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kv_core.networks.text_encoder import BASE, INTERPOLATION

from . import tiny, world

KINDS = (world.COLOURS, world.SHAPES, world.DIRECTIONS, world.BACKGROUNDS)
UNKNOWN_WORDS = 0.1  # share of a caption's words that are made unknown, for prompts of other words


class Heads(nn.Module):
    """Mean context `[b, d]` -> logits of every kind's names, and of its not being named, for either projection."""

    def __init__(self):
        super().__init__()
        width = sum(len(kind) + 1 for kind in KINDS)
        self.heads = nn.ModuleDict({name: nn.Linear(tiny.CONTEXT_DIM, width) for name in (BASE, INTERPOLATION)})

    def forward(self, context, projection):
        return self.heads[projection](context.mean(1)).split([len(kind) + 1 for kind in KINDS], dim=1)


def loss(text_model, heads, generator, count):
    """Cross-entropy of what `count` random captions name, with some of their words unknown."""
    template = int(torch.randint(len(world.TEMPLATES), (1,), generator=generator))
    scenes = world.sample_scenes(count, torch.ones(count), generator)
    device = next(text_model.parameters()).device
    ids, mask = tokens(scenes.captions(template), device)
    words = tiny.vocabulary()
    unknown = torch.rand(ids.shape, generator=generator).to(device) < UNKNOWN_WORDS
    ids = ids.masked_fill(unknown & (ids != words[tiny.PAD]) & (ids != words[tiny.END]), words[tiny.UNKNOWN])
    total = 0
    for projection in (BASE, INTERPOLATION):
        context, _ = text_model.encode(ids, mask, projection)
        for kind, logits in zip(KINDS, heads(context, projection)):
            total = total + cross_entropy(logits, named(ids, kind))
    return total


def tokens(captions, device="cpu"):
    """(ids, mask) `[b, n]` of captions with one number of words: as the pipeline's, less the padding it cuts off."""
    words = tiny.vocabulary()
    ends = [words[tiny.END], words[tiny.PAD]]  # the pipeline keeps one row of padding
    ids = torch.tensor([[words[word] for word in text.split()] + ends for text in captions], device=device)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    return ids, mask


def named(ids, kind):
    """Which of a kind's names is among the words of `ids` `[b, n]`, counted from 1; 0: none."""
    words = tiny.vocabulary()
    found = ids[:, :, None] == torch.tensor([words[name] for name in kind], device=ids.device)
    return ((found.any(1).long()) * torch.arange(1, len(kind) + 1, device=ids.device)).amax(1)
