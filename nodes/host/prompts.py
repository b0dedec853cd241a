"""What the pack's conditionings carry beside context and attention mask: one typed value under one key.

Encode Text makes it, a stage's guider adds what the branch of the guidance is given, and the model reads both. It is no
container: nodes of ComfyUI that walk through a conditioning leave it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...kv_core.networks.attention import Text
from ...kv_core.networks.text_encoder import null_context
from ...kv_core.sampling.settings import Interpolation, Keyframes

KEY = "kandinsky_video"

Encoded = tuple[torch.Tensor, torch.Tensor]  # context `[1, n, d]` and mask `[1, n]`


@dataclass(frozen=True, eq=False)
class KeyframeBranch:
    """mode: "image" or "video". condition `[1, 5, F, h, w]`: latent and mask, None for zeros.

    The numbers are one for all frames, or one for each.
    """

    mode: str | None = None
    condition: torch.Tensor | None = None
    motion_score: int | list[int] = Keyframes.motion_score
    noise_augmentation: int | list[int] = Keyframes.noise_augmentation


@dataclass(frozen=True, eq=False)
class InterpolationBranch:
    """neighbours `[1, 8, G, h, w]`: left and right frame of every gap, None where no temporal layer acts."""

    neighbours: torch.Tensor | None = None
    skip_frames: int | tuple[int, ...] = Interpolation.skip_frames


@dataclass(frozen=True, eq=False)
class Prompt:
    """texts: ((frame, (context, mask)), ...), each from its frame or gap on; the first is the conditioning's own.

    words: of the first text, pairs of a word and its number of tokens.
    """

    words: tuple[tuple[str, int], ...]
    texts: tuple[tuple[int, Encoded], ...]
    branch: KeyframeBranch | InterpolationBranch | None = None

    @property
    def changes(self) -> bool:
        """Whether the text changes along the frames."""
        return len(self.texts) > 1

    def is_of(self, context: torch.Tensor) -> bool:
        """Whether this is still the context that was encoded, and no other node has changed it."""
        return torch.equal(self.texts[0][1][0], context)

    @property
    def last_begins(self) -> int:
        return self.texts[-1][0]


def conditioning(prompt: Prompt) -> list:
    """A CONDITIONING of one encoded prompt."""
    context, mask = prompt.texts[0][1]
    return [[context, {"attention_mask": mask, KEY: prompt}]]


def prompt_of(values: dict) -> Prompt | None:
    """The pack's own value in an entry of a CONDITIONING; None where another encoder made it."""
    prompt = values.get(KEY)
    return prompt if isinstance(prompt, Prompt) else None


def with_branch(conditioning: list, branch: KeyframeBranch | InterpolationBranch) -> list:
    """The same conditioning for one branch of the guidance."""
    return [[context, {**values, KEY: replace(values[KEY], branch=branch)}] for context, values in conditioning]


def first_texts(conditioning: list) -> list:
    """The same conditioning with only the first of the texts that change along the frames."""
    return [
        [context, {**values, KEY: replace(values[KEY], texts=values[KEY].texts[:1])}]
        for context, values in conditioning
    ]


def null_conditioning(null_embedding: torch.Tensor, positive: list) -> list:
    """The unconditional text for every entry of `positive`, from a U-Net's own null embedding."""

    def null(entry):
        context, values = entry
        prompt = values[KEY]
        texts = tuple((frame, null_context(null_embedding, text[0])) for frame, text in prompt.texts)
        empty, mask = null_context(null_embedding, context)
        return [empty, {**values, "attention_mask": mask, KEY: replace(prompt, texts=texts)}]

    return [null(entry) for entry in positive]


def texts_of(prompt: Prompt, context: torch.Tensor, mask: torch.Tensor, count: int) -> tuple[Text, ...]:
    """What the U-Net reads: one Text for all of `count` frames or gaps or, where the text changes, one for each."""
    if prompt.changes:
        starts, encoded = zip(*prompt.texts)
        texts = [Text.unpadded(*each)[0] for each in encoded]
        return tuple(texts[sum(start <= frame for start in starts) - 1] for frame in range(count))
    # ComfyUI's Conditioning (Concat) appends tokens and drops their mask; masked tokens are zero.
    mask = torch.cat([mask, (context[:, mask.shape[1] :] != 0).any(-1).to(mask)], dim=1)
    return Text.unpadded(context, mask)
