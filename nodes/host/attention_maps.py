"""How strongly each token of a prompt is looked at, where and in which frame, in one forward pass."""

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from einops import rearrange

from ...kv_core.sampling.frames import first_frame_condition
from . import unets as host_model
from .guiders import prepare

OVERRIDE = "optimized_attention_override"


class OnePass(comfy.samplers.Sampler):
    """Puts noise over the latent and calls the model once; gives what it predicts."""

    def sample(self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, *arguments, **more):
        return model_wrap(latent_image + sigmas[0] * noise, sigmas[:1], **extra_args)


class Watch:
    """A wrapper of the U-Net's forward pass that keeps the cross-attention weights of every level.

    maps: number of a level -> one tensor `[t, h, w, tokens]` for each of its blocks, the mean over its heads.
    """

    def __init__(self):
        self.maps = {}

    def __call__(self, executor, x, timesteps, context, control, transformer_options, *, text, **conditions):
        unet = executor.class_obj
        levels = [
            level.number
            for level in (*unet.down_samples, *unet.up_samples)
            for block in level.resnet_attn_blocks
            if "1" in block
        ]
        # The keys that a block has of the text are its mark; no other attention is given them.
        levels = {id(reading[0].keys): level for level, reading in zip(levels, text.readings)}
        before = transformer_options.get(OVERRIDE)

        def attend(function, q, k, v, heads, *arguments, **more):
            if id(k) in levels:
                self.keep(levels[id(k)], q, k, heads, x.shape)
            if before is not None:
                return before(function, q, k, v, heads, *arguments, **more)
            return function(q, k, v, heads, *arguments, **more)

        options = {**transformer_options, OVERRIDE: attend}
        return executor(x, timesteps, context, control, options, text=text, **conditions)

    def keep(self, level, q, k, heads, shape):
        q, k = (rearrange(tokens[0].float(), "n (heads d) -> heads n d", heads=heads) for tokens in (q, k))
        weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1).mean(0)
        frames, height = shape[2], shape[3] // 2**level
        maps = rearrange(weights, "(t h w) tokens -> t h w tokens", t=frames, h=height)
        self.maps.setdefault(level, []).append(maps.cpu())


def attention_maps(model, positive, samples, timestep, noise):
    """The mean weights of every token `[t, h, w, tokens]` at the resolution of each level: {number: tensor}.

    samples `[1, 4, t, h, w]`: clean keyframes, over which noise of `timestep` is put; the first of them is the
    condition. With one frame the U-Net draws a first frame.
    """
    positive, _ = prepare("Attention Maps", model, host_model.KeyframeModel, positive, positive)
    watch, clone = Watch(), model.clone()
    clone.model_options.pop("context_handler", None)  # one pass over all frames is what is watched
    clone.add_wrapper(WrappersMP.DIFFUSION_MODEL, watch)
    guider = comfy.samplers.CFGGuider(clone)
    guider.set_conds(_with_first_frame(positive[:1], samples, noise), [])
    guider.set_cfg(1.0)
    sigma = clone.get_model_object("model_sampling").sigmas[timestep]
    guider.sample(noise.initial(samples.shape), samples, OnePass(), torch.stack([sigma, 0 * sigma]), seed=noise.seed)
    if not watch.maps and positive[0][1]["attention_mask"].sum() > 1:
        raise ValueError(
            f"Attention Maps found no attention to the prompt at noise level {timestep}: it is switched off in the "
            "model, or the prompt does not count there, by ConditioningSetTimestepRange or the like."
        )
    if not watch.maps:
        raise ValueError("Attention Maps needs a prompt of at least one word, but got an empty one: write one.")
    return {level: torch.stack(maps).mean(0) for level, maps in sorted(watch.maps.items())}


def _with_first_frame(positive, samples, noise):
    first, frames = samples[:, :, :1], samples.shape[2]
    values = {"kv_mode": "image"}
    if frames > 1:
        level = host_model.DEFAULT_NOISE_AUGMENTATION
        condition = first_frame_condition(first, frames, level, noise.augmentation(first.shape))
        values = {"kv_mode": "video", "kv_condition": condition}
    # Of prompts over time the first one is watched.
    return [
        [context, {key: value for key, value in given.items() if key != "kv_texts"} | values]
        for context, given in positive
    ]
