"""Kandinsky Video as one Python call, for scripts: what the nodes do, without a host.

    pipe = get_T2V_pipeline("cuda:0", cache_dir="weights")
    frames = pipe("A cat works as a lifeguard at a pool.", fps="medium", motion="high", seed=7)

Every stage is a method of its own, so a script can also run them one by one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from .files.checkpoints import open_checkpoint
from .networks.attention import Text
from .networks.interpolation_unet import InterpolationUNet
from .networks.keyframe_unet import KeyframeUNet
from .networks.movq import MoVQ, decode_chunks
from .networks.operations import TorchOperations
from .networks.text_encoder import TextModel, load_tokenizer, null_context
from .pictures import images
from .sampling import diffusion, frames
from .sampling.settings import FirstFrame, Interpolation, Keyframes, Run, check_size

SKIP_FRAMES: dict[str, tuple[int, ...]] = {"low": (), "medium": (3,), "high": (3, 1)}  # one interpolation each
LATENT_STEP = 8  # pixels

Encoded = tuple[torch.Tensor, torch.Tensor]  # context `[1, n, d]` and mask `[1, n]`
Progress = Callable[[str, int, int], object] | None


@dataclass(frozen=True)
class Clip:
    """Everything about a clip but its prompt and picture, under the authors' own names; checked when it is made.

    width, height: pixels, multiples of 64. fps: "low", "medium" or "high", for 12, 45 or 177 frames. motion: "low",
    "medium", "high" or "extreme". key_frame_guidance_scale: guidance of a first frame that is drawn.
    guidance_weight_*: of the keyframes. noise_augmentation: 0 to 999, how much the keyframes may leave the first frame.
    steps: of first frame, keyframes and every interpolation. keyframes: how many, 12 as published. Raises ValueError.
    """

    width: int = 512
    height: int = 512
    fps: str = "medium"
    motion: str = "medium"
    key_frame_guidance_scale: float = 5.0
    guidance_weight_prompt: float = 5.0
    guidance_weight_image: float = 2.0
    interpolation_guidance_scale: float = 0.5
    noise_augmentation: int = 20
    negative_prompt: str | None = None
    seed: int = 0
    steps: tuple[int, int, int] = (50, 50, 10)
    keyframes: int = frames.KEYFRAMES

    def __post_init__(self) -> None:
        if self.fps not in SKIP_FRAMES:
            raise ValueError(f"fps is {self.fps!r}, expected one of {', '.join(SKIP_FRAMES)}.")
        check_size(self.width, self.height)
        if not isinstance(self.steps, (tuple, list)) or len(self.steps) != 3:
            raise ValueError(f"steps is {self.steps}, expected those of first frame, keyframes and interpolation.")
        self.stages  # noqa: B018  makes and so checks them

    @property
    def drawn(self) -> FirstFrame:
        """The settings of a first frame that is drawn, at twice the clip's size."""
        return FirstFrame(2 * self.width, 2 * self.height, self.key_frame_guidance_scale)

    @cached_property
    def stages(self) -> tuple[Keyframes, list[Interpolation], list[Run]]:
        """The settings of keyframes and interpolations, and the runs of all three stages."""
        return (
            Keyframes(
                self.keyframes,
                motion_score(self.motion),
                self.noise_augmentation,
                self.guidance_weight_prompt,
                self.guidance_weight_image,
            ),
            [Interpolation(skip, self.interpolation_guidance_scale) for skip in SKIP_FRAMES[self.fps]],
            [Run(steps, self.seed) for steps in self.steps],
        )


# A stage's name, what its U-Net predicts, and the spacing of its steps.
_FIRST_FRAME = "first frame", "epsilon", diffusion.leading
_KEYFRAMES = "keyframes", "epsilon", diffusion.leading
_INTERPOLATION = "interpolation", "velocity", diffusion.trailing


class KandinskyVideoPipeline:
    """The five parts and how they follow on each other.

    `text_model` and `tokenizer` encode prompts; `keyframe` and `interpolation` are pairs (U-Net, null embedding);
    `movq` and `video_movq` decode. Parts may lie on different devices and have different types. `noise(seed)` makes
    the noise of one sampling stage, see diffusion.SeededNoise.

    progress(stage, step, steps), where a method takes it, is called before every step; raising in it cancels.
    """

    def __init__(self, text_model, tokenizer, keyframe, interpolation, movq, video_movq, noise=diffusion.SeededNoise):
        self.text_model, self.tokenizer = text_model, tokenizer
        self.keyframe, self.interpolation = keyframe, interpolation
        self.movq, self.video_movq = movq, video_movq
        self.noise = noise

    def __call__(
        self, prompt: str, image: Image.Image | None = None, *, progress: Progress = None, **settings: Any
    ) -> list[Image.Image]:
        """Makes a clip and returns its frames.

        image: a Pillow image to begin with; left out, one is drawn. settings: fields of Clip. Raises ValueError.
        """
        clip = Clip(**settings)
        moving, passes, (first_run, keyframe_run, gap_run) = clip.stages
        if image is None:
            clip.drawn  # noqa: B018  made and so checked before the work begins
        texts = self.encode_text(prompt, clip.negative_prompt)
        if image is None:
            image = self.decode_image(self.first_frame(texts, clip.drawn, first_run, progress))
        latents = self.encode_image(image, clip.width, clip.height)
        latents = self.keyframes(texts, latents, moving, keyframe_run, progress)
        for gaps in passes:
            latents = self.interpolate(texts, latents, gaps, gap_run, progress)
        return images.to_images(self.decode_video(latents))

    def encode_text(self, prompt: str, negative_prompt: str | None = None) -> tuple[Encoded, Encoded | None]:
        """(context, mask) of the prompt and of the negative prompt; None there means the U-Nets' null embedding."""
        return self._encode(prompt), None if negative_prompt is None else self._encode(negative_prompt)

    def first_frame(self, texts, settings: FirstFrame, run: Run, progress: Progress = None) -> torch.Tensor:
        """Draws a picture; returns its latent `[1, 4, 1, height / 8, width / 8]`."""
        unet, null = self.keyframe
        branches = self._branches(texts, null, unet)

        def predict(x, time, _):
            x = torch.cat([x, x.new_zeros(1, 5, *x.shape[2:])], dim=1)
            return diffusion.guide(*(unet(x, time, text, mode="image") for text in branches), settings.guidance)

        shape = (1, 4, 1, settings.height // LATENT_STEP, settings.width // LATENT_STEP)
        return self._sample(_FIRST_FRAME, unet, predict, shape, run, self.noise(run.seed), progress)

    def keyframes(
        self, texts, first_frame: torch.Tensor, settings: Keyframes, run: Run, progress: Progress = None
    ) -> torch.Tensor:
        """Continues from first_frame `[1, 4, 1, h, w]`; returns `[1, 4, frames, h, w]`.

        Frames that are held and clips to start from need the nodes: with those it raises ValueError.
        """
        unet, null = self.keyframe
        noise, count = self.noise(run.seed), settings.frames
        prompt, empty = self._branches(texts, null, unet)
        show, hold = frames.place_conditions(settings.conditions, first_frame, count)
        if hold or settings.init_video is not None:
            raise ValueError("The Python call neither holds frames nor starts from a clip.")
        augmentation = settings.value("noise_augmentation", count)
        condition = frames.frames_condition(show, count, augmentation, noise.augmentation(first_frame.shape))
        condition = _to(condition, unet)
        scores = {
            name: torch.tensor(settings.value(name, count), device=condition.device).expand(1, count)
            for name in ("motion_score", "noise_augmentation")
        }

        def predict(x, time, done):
            branches = [(prompt, condition), (empty, condition), (empty, torch.zeros_like(condition))]
            out = (unet(torch.cat([x, given], dim=1), time, text, **scores) for text, given in branches)
            weights = (settings.weight(name, x, done) for name in ("text_guidance", "image_guidance"))
            return diffusion.guide_three(*out, *weights)

        return self._sample(_KEYFRAMES, unet, predict, (1, *condition[0, :4].shape), run, noise, progress)

    def interpolate(
        self, texts, latents: torch.Tensor, settings: Interpolation, run: Run, progress: Progress = None
    ) -> torch.Tensor:
        """Puts three frames into every gap of `[1, 4, t, h, w]`; returns `[1, 4, 4t - 3, h, w]`, the given kept."""
        unet, null = self.interpolation
        prompt, empty = self._branches(texts, null, unet)
        given = _to(frames.neighbours(latents), unet)
        settings.check_gaps(given.shape[2])
        skip = torch.atleast_1d(torch.tensor(settings.skip_frames, device=given.device))

        def predict(x, time, done):
            branches = [(prompt, given, True), (empty, torch.zeros_like(given), False)]
            numbers = {"skip_frames": skip, "perturbation_time": torch.zeros_like(skip[:1])}
            out = (
                unet(frames.between(sides, x), time, text, temporal_mask=[temporal], **numbers)
                for text, sides, temporal in branches
            )
            return diffusion.guide(*out, settings.weight("guidance", x, done))

        shape = (1, 12, given.shape[2], *given.shape[-2:])
        predicted = self._sample(_INTERPOLATION, unet, predict, shape, run, self.noise(run.seed), progress)
        return frames.interleave(latents, predicted.to(latents))

    @torch.no_grad()
    def encode_image(self, image: Image.Image, width: int, height: int) -> torch.Tensor:
        """A Pillow image, fitted to `width` x `height` -> its latent `[1, 4, 1, height / 8, width / 8]`."""
        check_size(width, height)
        pixels = images.to_pixels(images.fit(image, width, height))
        return self.movq.encode(_to(pixels, self.movq))[:, :, None]

    @torch.no_grad()
    def decode_image(self, latent: torch.Tensor) -> Image.Image:
        """A latent `[1, 4, 1, h, w]` -> a Pillow image."""
        return images.to_images(images.to_bytes(self.movq.decode(_to(latent[:, :, 0], self.movq))))[0]

    @torch.no_grad()
    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[1, 4, t, h, w]` -> 8-bit frames `[t, 8h, 8w, 3]`, on the CPU."""
        frames_first = _to(latents[0].transpose(0, 1), self.video_movq)
        chunks = frames_first.split(decode_chunks(frames_first.shape[0]))
        return torch.cat([images.to_bytes(self.video_movq.decode(chunk)).cpu() for chunk in chunks])

    @torch.no_grad()
    def _encode(self, text: str) -> Encoded:
        tokens = self.tokenizer(text)
        if tokens.cut:
            logging.warning("The prompt is longer than 128 tokens; the rest of it is left out.")
        device = _weight(self.text_model).device
        return self.text_model.encode(
            tokens.input_ids.to(device), tokens.attention_mask.to(device), dtype=_weight(self.text_model).dtype
        )

    def _branches(self, texts, null_embedding, unet) -> list[tuple[Text, ...]]:
        """The prompt, and the negative prompt or the null embedding, as the U-Net takes them."""
        positive, negative = texts
        if negative is None and null_embedding is None:
            raise ValueError("This U-Net file holds no null embedding: give a negative prompt.")
        negative = negative or null_context(null_embedding, positive[0])
        return [Text.unpadded(_to(context, unet), mask) for context, mask in (positive, negative)]

    @torch.no_grad()
    def _sample(self, stage, unet, predict, shape, run, noise, progress):
        if run.sampler is not None or run.sigmas is not None or run.denoise != 1:
            raise ValueError("The Python call samples as published: leave out sampler, sigmas and denoise.")
        name, prediction, spacing = stage
        timesteps = spacing(run.steps)

        def denoise(sample, timestep):
            if progress:
                progress(name, timesteps.index(timestep), len(timesteps))
            done = 1 - timestep / (diffusion.TRAINING_STEPS - 1)
            output = predict(sample, torch.tensor([timestep], device=sample.device), done)
            return diffusion.predict_x0(sample, output, timestep, prediction)

        initial = noise.initial(shape).to(_weight(unet))
        samples = diffusion.sample_ddpm(denoise, initial, timesteps, noise.step)
        if not samples.isfinite().all():
            raise ValueError(f"The {name} ended in NaN or infinite values: load that U-Net in bfloat16 or float32.")
        return samples


def motion_score(motion: str) -> int:
    """The score of a motion's name. As published, an unknown name warns and means medium."""
    if motion not in frames.MOTION_SCORES:
        logging.warning("motion is %r, expected one of %s: medium is used.", motion, ", ".join(frames.MOTION_SCORES))
    return frames.MOTION_SCORES.get(motion, frames.MOTION_SCORES["medium"])


def _weight(module):
    return next(module.parameters())


def _to(tensor, module):
    return tensor.to(_weight(module))


FILE_STEMS = {  # names of the published files, without their endings; converted ones keep them
    "keyframe_unet": "t2v",
    "interpolation_unet": "interpolation",
    "image_movq": "movq",
    "video_movq": "video_movq",
    "projections": "t5_projections",
    "text_encoder": "flan_ul2_encoder",
}
_CLASSES = {
    "keyframe_unet": KeyframeUNet,
    "interpolation_unet": InterpolationUNet,
    "image_movq": MoVQ,
    "video_movq": MoVQ,
}


def get_T2V_pipeline(device_map, cache_dir="weights", dtype_map=None):  # noqa: N802, the authors' own name
    """The pipeline with the weights in the folder `cache_dir`: t2v, interpolation, movq, video_movq and t5_projections
    (.safetensors or .pt) and the folder flan_ul2_encoder with its tokenizer.

    device_map: a device for all, or one for every name in FILE_STEMS (the projections go with the text encoder).
    dtype_map: likewise for types; left out, U-Nets on a GPU are float16 and all else float32, as published.
    Nothing is downloaded. Raises FileNotFoundError and CheckpointError with one sentence.
    """
    return load_pipeline({part: _find(cache_dir, part) for part in FILE_STEMS}, device_map, dtype_map)


def load_pipeline(paths, device_map, dtype_map=None):
    """The same from files of any name: `paths` has one for every name in FILE_STEMS."""
    tokenizer = load_tokenizer(paths["text_encoder"])
    models, nulls = {}, {}
    for part, model_class in _CLASSES.items():
        checkpoint = open_checkpoint(paths[part], expect=part)
        device, dtype = _placement(part, device_map, dtype_map)
        models[part] = _load(model_class(**checkpoint.config, **_FACTORY), checkpoint.tensors, device, dtype)
        nulls[part] = checkpoint.null_embedding
    return KandinskyVideoPipeline(
        _load_text_model(paths["text_encoder"], paths["projections"], device_map, dtype_map),
        tokenizer,
        (models["keyframe_unet"], nulls["keyframe_unet"]),
        (models["interpolation_unet"], nulls["interpolation_unet"]),
        models["image_movq"],
        models["video_movq"],
    )


_FACTORY = {"operations": TorchOperations, "device": "meta"}


def _load_text_model(folder, projections_path, device_map, dtype_map):
    encoder = open_checkpoint(folder, expect="text_encoder")
    projections = open_checkpoint(projections_path, expect="projections")
    state = {f"text_encoder.{key}": value for key, value in encoder.tensors.items()}
    state |= {f"projections.{key}": value for key, value in projections.tensors.items()}
    model = TextModel(encoder.config, projections.config["context_dim"], projections.config["names"], **_FACTORY)
    return _load(model, state, *_placement("text_encoder", device_map, dtype_map))


def _load(model, state, device, dtype):
    # Built without memory, then given the file's own tensors: each weight is moved and cast alone.
    model.load_state_dict(state, assign=True)
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def _placement(part, device_map, dtype_map):
    device = torch.device(device_map[part] if isinstance(device_map, dict) else device_map)
    published = torch.float16 if part.endswith("_unet") and device.type == "cuda" else torch.float32
    dtype = dtype_map.get(part, published) if isinstance(dtype_map, dict) else dtype_map or published
    return device, dtype


def _find(folder, part):
    stem = Path(folder) / FILE_STEMS[part]
    for path in (stem, stem.with_suffix(".safetensors"), stem.with_suffix(".pt")):
        if path.exists():
            return path
    raise FileNotFoundError(f"{stem.name}.safetensors or {stem.name}.pt is missing in {stem.parent.resolve()}.")
