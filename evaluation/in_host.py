"""The tiny model's U-Nets as MODELs in ComfyUI, sampled by the pack's nodes with any sampler, schedule and cache.

Runs where ComfyUI can be imported, which `tools.comfy.pack.load` sees to.
"""

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

import torch

from kv_core.sampling.frames import MOTION_SCORES
from training import world

from .benchmark import DEFAULTS, FILES, Judge, guided

OWN = "published"  # the pack's sampler, which the host does not list
OWN_SPACINGS = ("leading", "trailing", "karras")


class Setting(NamedTuple):
    """How a stage is sampled. cache: EasyCache's threshold, 0 for none. Written `euler/karras/10` or, with a cache,
    `euler/karras/10/0.2`."""

    sampler: str
    spacing: str
    steps: int
    cache: float = 0.0

    def __str__(self):
        return "/".join(map(str, self if self.cache else self[:3]))

    @classmethod
    def parse(cls, text):
        sampler, spacing, steps, *cache = text.split("/")
        return cls(sampler, spacing, int(steps), *map(float, cache))


PUBLISHED = {
    "first_frame": Setting(OWN, "leading", 50),
    "keyframes": Setting(OWN, "leading", 50),
    "interpolation": Setting(OWN, "trailing", 10),
}
BRANCHES = {"first_frame": 2, "keyframes": 3, "interpolation": 2}


class HostJudge(Judge):
    """The same as Judge with the three sampling stages in ComfyUI, as `settings` say.

    nodes: node id -> node class. `seconds` and `calls` of a stage's last run: the processor's time that sampling took,
    and how often the U-Net ran for all branches.
    """

    def __init__(self, models, pack, nodes):
        super().__init__(models)
        self._nodes = nodes
        self._unets = {
            part: pack.nodes.host.unets.load_unet(str(Path(models) / FILES[part]), "fp32")
            for part in ("keyframe_unet", "interpolation_unet")
        }
        self._latent, self._prompts = pack.nodes.sockets.latent, pack.nodes.host.prompts
        self.settings = dict(PUBLISHED)
        self.seconds, self.calls = {}, {}
        self._kept = {}

    def kept(self, key, make):
        """What make() gave for this key, made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def cost(self, *stages):
        """What the last runs of these stages took."""
        return {
            "seconds": sum(self.seconds[stage] for stage in stages),
            "calls": sum(self.calls[stage] for stage in stages),
        }

    @contextlib.contextmanager
    def using(self, settings):
        """Samples these stages otherwise for a while."""
        before = self.settings
        self.settings = {**before, **settings}
        try:
            yield self
        finally:
            self.settings = before

    def first_frame(self, texts, seed, guidance=DEFAULTS["guidance"]):
        texts, guidance = guided(self.pipe, texts, guidance)
        size = 2 * world.SIZE
        return self.pipe.decode_image(
            self._sample("first_frame", "FirstFrame", texts, seed, width=size, height=size, guidance=guidance)
        )

    def keyframes(self, texts, image, seed, motion="medium", text_guidance=DEFAULTS["text"]):
        frame = self.pipe.encode_image(image, world.SIZE, world.SIZE)
        return self._sample(
            "keyframes",
            "Keyframes",
            texts,
            seed,
            first_frame=self._latent("frame", frame),
            frames=world.KEYFRAMES,
            motion=motion,
            motion_score=MOTION_SCORES[motion],
            noise_augmentation=DEFAULTS["augmentation"],
            text_guidance=text_guidance,
            image_guidance=DEFAULTS["image"],
        )

    def interpolate(self, texts, latents, seed):
        return self._sample(
            "interpolation",
            "Interpolate",
            texts,
            seed,
            samples=self._latent("keyframes", latents),
            skip_frames="auto",
            guidance=DEFAULTS["interpolation"],
        )

    def _node(self, name, **inputs):
        return self._nodes[f"KandinskyVideo{name}"].execute(**inputs).args[0]

    def _sample(self, stage, name, texts, seed, **inputs):
        setting = self.settings[stage]
        model = self._unets["interpolation_unet" if stage == "interpolation" else "keyframe_unet"]
        sigmas, sampler = self._sigmas(model, setting), self._sampler(setting.sampler)
        positive, negative = (
            None if text is None else self._prompts.conditioning(self._prompts.Prompt((), ((0, text),)))
            for text in texts
        )
        with count_rows(model.model.diffusion_model) as rows, torch.random.fork_rng(devices=[]):
            start = time.process_time()
            latent = self._node(
                name,
                model=cached(model, setting.cache),
                positive=positive,
                negative=negative,
                steps=setting.steps,
                seed=seed,
                sampler=sampler,
                sigmas=sigmas,
                **inputs,
            )
            self.seconds[stage] = time.process_time() - start
        self.calls[stage] = sum(rows) / BRANCHES[stage]
        return latent["samples"]

    def _sigmas(self, model, setting):
        if setting.spacing in OWN_SPACINGS:
            return self._node("Sigmas", model=model, spacing=setting.spacing, steps=setting.steps, denoise=1.0)
        from comfy.samplers import calculate_sigmas

        return calculate_sigmas(model.get_model_object("model_sampling"), setting.spacing, setting.steps)

    def _sampler(self, name):
        if name == OWN:
            return self._node("DDPM")
        from comfy.samplers import sampler_object

        return sampler_object(name)


def cached(model, threshold):
    """The MODEL with the host's EasyCache at its own defaults for when it may act; as it is for a threshold of 0."""
    if not threshold:
        return model
    from comfy_extras.nodes_easycache import EasyCacheNode

    return EasyCacheNode.execute(model, threshold, start_percent=0.15, end_percent=0.95, verbose=False).args[0]


@contextlib.contextmanager
def count_rows(unet):
    """Gives a list that gets the number of branches of every call that computes; what a cache answers is none."""
    rows, inner = [], unet._forward

    def counted(x, *arguments, **conditions):
        rows.append(len(x))
        return inner(x, *arguments, **conditions)

    unet._forward = counted
    try:
        yield rows
    finally:
        del unet._forward
