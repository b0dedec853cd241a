"""What the parts of Kandinsky Video are trained on, for the tiny models here and for the published sizes alike.

Every loss takes networks of kv_core, a batch of latents or pixels and a `torch.Generator` for all its randomness, and
returns a scalar. Latents are `[b, 4, t, h, w]`, about [-1, 1]; text is a pair (context `[b, n, d]`, mask `[b, n]`).

Sources: Ho et al. 2020, "Denoising Diffusion Probabilistic Models", equation 14 (noise prediction); Salimans & Ho 2022,
"Progressive Distillation", appendix D (velocity); Ho & Salimans 2022, "Classifier-Free Diffusion Guidance", section 3.2
(condition dropout); Arkhipkin et al. 2023, "FusionFrames", section 3.
"""

import torch
from einops import rearrange
from torch.nn.functional import l1_loss, mse_loss

from kv_core.networks.attention import Text
from kv_core.networks.text_encoder import null_context
from kv_core.sampling import diffusion, frames


def first_frame_loss(
    unet, latents, text, null_embedding, generator, drop_text=0.1, most_weight=100.0, towards_noise=1.0
):
    """Noise prediction in image mode, latents `[b, 4, 1, h, w]`; a share of the rows loses its text."""
    context, mask = without(text, null_embedding, chance(len(latents), drop_text, generator))
    noisy, noise, time = noised(latents, generator, towards_noise)
    nothing_given = noisy.new_zeros(len(noisy), 5, *noisy.shape[2:])
    out = unet(torch.cat([noisy, nothing_given], dim=1), time, [Text.padded(context, mask)], mode="image")
    return noise_loss(out, noise, time, most_weight)


def keyframe_loss(
    unet,
    latents,
    text,
    null_embedding,
    motion_score,
    generator,
    drop_text=0.1,
    drop_all=0.1,
    most_augmentation=200,
    most_weight=100.0,
    towards_noise=1.0,
):
    """Noise prediction in video mode, motion_score `[b]`.

    The first frame is given with up to `most_augmentation` steps of noise. A share of the rows loses its text, another
    text and first frame: the three branches of the sampler's guidance.
    """
    dice = torch.rand(len(latents), generator=generator)
    no_text, nothing = dice < drop_text + drop_all, dice < drop_all
    context, mask = without(text, null_embedding, no_text)
    augmentation = torch.randint(most_augmentation + 1, (len(latents),), generator=generator)
    condition = torch.cat(
        [
            frames.frames_condition(
                {0: clip[None, :, :1]},
                latents.shape[2],
                int(level),
                torch.rand(clip[None, :, :1].shape, generator=generator),
            )
            for clip, level in zip(latents, augmentation)
        ]
    )
    condition = condition * ~nothing.to(condition.device)[:, None, None, None, None]
    noisy, noise, time = noised(latents, generator, towards_noise)
    out = unet(
        torch.cat([noisy, condition], dim=1),
        time,
        [Text.padded(context, mask)],
        motion_score=motion_score[:, None].to(latents.device),
        noise_augmentation=augmentation[:, None].to(latents.device),
    )
    return noise_loss(out, noise, time, most_weight)


def interpolation_loss(unet, latents, text, null_embedding, skip_frames, generator, drop_all=0.1):
    """Velocity of the three frames in every gap of clips with 4g + 1 frames, the gap's ends given; skip_frames `[b]`.

    A share of the rows loses text, neighbours and temporal layers at once: the sampler's unconditional branch.
    """
    given = frames.neighbours(latents[:, :, ::4])
    between = gap_frames(latents)
    nothing = chance(len(latents), drop_all, generator)
    context, mask = without(text, null_embedding, nothing)
    kept = ~nothing.to(latents.device)
    noisy, noise, time = noised(between, generator)
    out = unet(
        frames.between(given * kept[:, None, None, None, None], noisy),
        time,
        [Text.padded(context, mask)],
        temporal_mask=(~nothing).tolist(),
        skip_frames=skip_frames.to(latents.device),
        perturbation_time=torch.zeros_like(time),
    )
    return mse_loss(out, velocity(between, noise, time))


def reconstruction_loss(movq, pixels, generator, latent_noise=0.08, latent_weight=1.0, change_weight=0.0):
    """Absolute error of decoded pixels `[b, 3, H, W]`; a temporal MoVQ takes the frames of one chunk.

    `change_weight` adds the error of the changes from frame to frame: what flickers counts more than what stays off.

    The decoder is shown latents as a sampler hands them on: clamped to [-1, 1], with some noise left. What lies beyond
    is pulled back, so that nothing is lost in the clamp.
    """
    latents = movq.encode(pixels)
    beyond = (latents.abs() - 0.95).clamp(min=0).square().mean()
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    decoded = movq.decode(latents.clamp(-1, 1) + latent_noise * noise)
    loss = l1_loss(decoded, pixels) + latent_weight * beyond
    return loss + change_weight * l1_loss(decoded.diff(dim=0), pixels.diff(dim=0)) if change_weight else loss


def noise_loss(predicted, noise, time, most_weight):
    """Squared error of the noise, each row's weighted by 1 / SNR of its timestep, from 1 to `most_weight`.

    The error of the noise hardly shows an error of what the noise hides: where shape, colour and way are decided, at
    the first steps of sampling, the signal is too weak. Weighted so, it counts as an error of the clean latent there
    (Salimans & Ho 2022, section 4, truncated SNR weighting). A `most_weight` of 1 weights all alike.
    """
    abar = diffusion.alphas_cumprod().to(predicted)[time]
    weight = ((1 - abar) / abar).clamp(1, most_weight)
    return (weight * (predicted - noise).square().flatten(1).mean(1)).mean()


def gap_frames(latents):
    """The three frames in every gap, frame-major: `[b, 4, 4g + 1, h, w]` -> `[b, 12, g, h, w]`."""
    gaps = rearrange(latents[:, :, :-1], "b c (g f) h w -> b f c g h w", f=4)
    return gaps[:, 1:].flatten(1, 2)


def noised(latents, generator, towards_noise=1.0):
    """(noisy latents, the noise, timesteps `[b]`), every row at a step of its own of the published schedule.

    `towards_noise` of 1 draws all steps alike; more of it the late ones more often, where the text decides most: with 2
    a third of the rows are in the last tenth.
    """
    share = 1 - torch.rand(len(latents), generator=generator) ** towards_noise
    time = (share * diffusion.TRAINING_STEPS).long().clamp(max=diffusion.TRAINING_STEPS - 1).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    signal, share = _roots(time, latents)
    return signal * latents + share * noise, noise, time


def velocity(latents, noise, time):
    """sqrt(abar) noise - sqrt(1 - abar) latents: what the interpolation U-Net predicts."""
    signal, share = _roots(time, latents)
    return signal * noise - share * latents


def without(text, null_embedding, dropped):
    """The text with the rows where `dropped` `[b]` replaced by the unconditional context of the same length."""
    context, mask = text
    null, null_mask = null_context(null_embedding, context)
    dropped = dropped.to(context.device)
    return torch.where(dropped[:, None, None], null, context), torch.where(dropped[:, None], null_mask, mask)


def chance(rows, share, generator):
    return torch.rand(rows, generator=generator) < share


def _roots(time, like):
    abar = diffusion.alphas_cumprod().to(like)[time][:, None, None, None, None]
    return abar.sqrt(), (1 - abar).sqrt()
