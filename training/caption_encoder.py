"""Trains the tiny caption encoder, in place of Flan-UL2's own training.

The published encoder is a large language model, which is frozen while the U-Nets train. Likewise here: the tiny encoder
first learns to classify, from the mean of its context, every attribute that a caption names, and is then frozen.
"""

from collections.abc import Collection, Sequence

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kv_core.networks.text_encoder import BASE, INTERPOLATION, TextModel

from . import tiny, world

ATTRIBUTES = (world.COLOURS, world.SHAPES, world.DIRECTIONS, world.BACKGROUNDS)
UNKNOWN_WORDS = 0.1  # share of a caption's words that are made unknown, for prompts of other words


class Heads(nn.Module):
    """Context `[b, n, d]` -> logits `[b, k + 1]` for every attribute: not named, or which of its k names."""

    def __init__(self) -> None:
        super().__init__()
        width = sum(len(names) + 1 for names in ATTRIBUTES)
        self.heads = nn.ModuleDict({name: nn.Linear(tiny.CONTEXT_DIM, width) for name in (BASE, INTERPOLATION)})

    def forward(self, context: torch.Tensor, projection: str) -> tuple[torch.Tensor, ...]:
        return self.heads[projection](context.mean(1)).split([len(names) + 1 for names in ATTRIBUTES], dim=1)


def loss(text_model: TextModel, heads: Heads, generator: torch.Generator, count: int) -> torch.Tensor:
    """Cross-entropy of the attributes of `count` random captions, in which some words are made unknown."""
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
        for names, logits in zip(ATTRIBUTES, heads(context, projection)):
            total = total + cross_entropy(logits, label(ids, names))
    return total


def tokens(captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, mask) `[b, n]` of captions of the same length, as the pipeline makes them, without the padding it cuts."""
    words = tiny.vocabulary()
    ends = [words[tiny.END], words[tiny.PAD]]  # the pipeline keeps one row of padding
    ids = torch.tensor([[words[word] for word in text.split()] + ends for text in captions], device=device)
    mask = torch.ones_like(ids)
    mask[:, -1] = 0
    return ids, mask


def label(ids: torch.Tensor, names: Collection[str]) -> torch.Tensor:
    """Which of an attribute's names is among the words of `ids` `[b, n]`, counted from 1; 0: none."""
    words = tiny.vocabulary()
    found = ids[:, :, None] == torch.tensor([words[name] for name in names], device=ids.device)
    return ((found.any(1).long()) * torch.arange(1, len(names) + 1, device=ids.device)).amax(1)
