"""Where a U-Net attends to each token of a prompt, from one forward pass."""

import contextlib

import comfy.samplers
import torch
from einops import rearrange

from ...kv_core.networks.attention import CrossAttentionBlock
from ...kv_core.sampling.frames import frames_condition
from ...kv_core.sampling.settings import Keyframes
from .guiders import Prompts, check_prompts
from .patches import layers
from .prompts import KeyframeBranch, first_texts, prompt_of, with_branch
from .unets import KeyframeModel


class OnePass(comfy.samplers.Sampler):
    """Puts noise over the latent and calls the model once; gives what it predicts."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *arguments, **more):
        return model_wrap(latent_image + sigmas[0] * noise, sigmas[:1], **extra_args)


@contextlib.contextmanager
def watched(model, shape):
    """Gives a dict that is filled with the cross-attention weights of the forward pass in the block.

    It has a level's number -> one tensor `[t, h, w, tokens]` for each of its blocks, the mean over its heads.
    shape: of the latent `[1, 4, t, h, w]`.
    """
    maps, hooks = {}, []

    def keep(level):
        def look(attention, arguments):
            x, context = arguments[:2]
            if x is None:  # a single token gets all attention
                return
            q, k = (
                rearrange(tokens[0].float(), "n (heads d) -> heads n d", heads=attention.heads)
                for tokens in (attention.to_query(x), attention.to_key(context))
            )
            weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
            per_frame = rearrange(weights, "(t h w) n -> t h w n", t=shape[2], h=shape[3] // 2**level)
            maps.setdefault(level, []).append(per_frame.cpu())

        return look

    for name, level in layers(model, CrossAttentionBlock):
        block = model.get_model_object(name)
        if isinstance(block, CrossAttentionBlock):  # else it is switched off
            hooks.append(block.attention.register_forward_pre_hook(keep(level)))
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()


def attention_maps(model, positive, samples, timestep, noise):
    """The mean weights of every token `[t, h, w, tokens]` at the resolution of each level: {number: tensor}.

    samples `[1, 4, t, h, w]`: clean keyframes, over which noise of `timestep` is put; the first of them is the
    condition. With one frame the U-Net draws a first frame. Of prompts over time the first one is watched.
    """
    positive, _ = check_prompts("Attention Maps", model, KeyframeModel, Prompts(positive, positive))
    if not prompt_of(positive[0][1]).is_of(positive[0][0]):
        raise ValueError(
            "Attention Maps needs positive as Encode Text (Flan-UL2) gives it, but another node changed its text: "
            "connect it directly."
        )
    clone = model.clone()
    clone.model_options.pop("context_handler", None)  # one pass over all frames is what is watched
    guider = comfy.samplers.CFGGuider(clone)
    guider.set_conds(_with_first_frame(positive[:1], samples, noise), [])
    guider.set_cfg(1.0)
    sigma = clone.get_model_object("model_sampling").sigmas[timestep]
    with watched(clone, samples.shape) as maps:
        steps = torch.stack([sigma, 0 * sigma])
        guider.sample(noise.initial(samples.shape), samples, OnePass(), steps, seed=noise.seed)
    if not maps and positive[0][1]["attention_mask"].sum() > 1:
        raise ValueError(
            f"Attention Maps found no attention to the prompt at noise level {timestep}: it is switched off in the "
            "model, or the prompt is not active there, by ConditioningSetTimestepRange or the like."
        )
    if not maps:
        raise ValueError("Attention Maps needs a prompt of at least one word, but got an empty one: write one.")
    return {level: torch.stack(each).mean(0) for level, each in sorted(maps.items())}


def _with_first_frame(positive, samples, noise):
    first, frames = samples[:, :, :1], samples.shape[2]
    branch = KeyframeBranch("image")
    if frames > 1:
        level = Keyframes.noise_augmentation
        condition = frames_condition({0: first}, frames, level, noise.augmentation(first.shape))
        branch = KeyframeBranch("video", condition)
    return with_branch(first_texts(positive), branch)
