"""Kandinsky Video as one Python call, for scripts: what the nodes do, without a host.

    pipe = get_T2V_pipeline("cuda:0", cache_dir="weights")
    frames = pipe("A cat works as a lifeguard at a pool.", fps="medium", motion="high", seed=7)

Every stage is a method of its own, so a script can also run them one by one.
"""

import logging
from pathlib import Path

import torch

from .files.checkpoints import open_checkpoint
from .networks.interpolation_unet import InterpolationUNet
from .networks.keyframe_unet import KeyframeUNet
from .networks.movq import MoVQ, decode_chunks
from .networks.operations import TorchOperations
from .networks.text_encoder import TextModel, load_tokenizer, null_context
from .pictures import images
from .sampling import diffusion, frames

SKIP_FRAMES = {"low": (), "medium": (3,), "high": (3, 1)}  # one interpolation each
SIZE_STEP = 64
LATENT_STEP = 8  # pixels


class KandinskyVideoPipeline:
    """The five parts and how they follow on each other.

    `text_model` and `tokenizer` encode prompts; `keyframe` and `interpolation` are pairs (U-Net, null embedding);
    `movq` and `video_movq` decode. Parts may lie on different devices and have different types. `noise(seed)` makes
    the noise of one sampling stage, see diffusion.SeededNoise.
    """

    def __init__(self, text_model, tokenizer, keyframe, interpolation, movq, video_movq, noise=diffusion.SeededNoise):
        self.text_model, self.tokenizer = text_model, tokenizer
        self.keyframe, self.interpolation = keyframe, interpolation
        self.movq, self.video_movq = movq, video_movq
        self.noise = noise

    @torch.no_grad()
    def __call__(
        self,
        prompt,
        image=None,
        width=512,
        height=512,
        fps="medium",
        motion="medium",
        key_frame_guidance_scale=5.0,
        guidance_weight_prompt=5.0,
        guidance_weight_image=2.0,
        interpolation_guidance_scale=0.5,
        noise_augmentation=20,
        *,
        negative_prompt=None,
        seed=0,
        steps=(50, 50, 10),
        keyframes=frames.KEYFRAMES,
        progress=None,
    ):
        """Makes a clip; returns its frames as Pillow images: 12, 45 or 177 for fps "low", "medium" or "high".

        image: a Pillow image to begin with; left out, one is drawn with guidance `key_frame_guidance_scale`. width,
        height: pixels, multiples of 64. motion: "low", "medium", "high" or "extreme". guidance_weight_*: of keyframes.
        noise_augmentation: 0 to 999, how much the keyframes may leave the first frame. steps: of first frame,
        keyframes and every interpolation. keyframes: how many, 12 as published.
        progress(stage, step, steps) is called before every step; raising in it
        cancels. Raises ValueError for sizes and names that do not exist.
        """
        _check_size(width, height)
        if fps not in SKIP_FRAMES:
            raise ValueError(f"fps is {fps!r}, expected one of {', '.join(SKIP_FRAMES)}.")
        texts = self.encode_text(prompt, negative_prompt)
        if image is None:
            latent = self.first_frame(texts, 2 * width, 2 * height, key_frame_guidance_scale, steps[0], seed, progress)
            image = self.decode_image(latent)
        latents = self.keyframes(
            texts, self.encode_image(image, width, height), motion_score(motion), noise_augmentation,
            guidance_weight_prompt, guidance_weight_image, steps[1], seed, progress, keyframes,
        )  # fmt: skip
        for skip_frames in SKIP_FRAMES[fps]:
            latents = self.interpolate(
                texts, latents, skip_frames, interpolation_guidance_scale, steps[2], seed, progress
            )
        return images.to_images(self.decode_video(latents))

    def encode_text(self, prompt, negative_prompt=None):
        """(context, mask) of the prompt and of the negative prompt; None there means the U-Nets' null embedding."""
        return self._encode(prompt), None if negative_prompt is None else self._encode(negative_prompt)

    def first_frame(self, texts, width, height, guidance, steps, seed, progress=None):
        """Draws an image; returns its latent `[1, 4, 1, height / 8, width / 8]`."""
        unet, null = self.keyframe
        conditional, unconditional = self._branch_texts(texts, null, unet)

        def predict(x, time):
            x = torch.cat([x, x.new_zeros(1, 5, *x.shape[2:])], dim=1)
            cond, uncond = (unet(x, time, text, mode="image") for text in (conditional, unconditional))
            return diffusion.guide(cond, uncond, guidance)

        shape = (1, 4, 1, height // LATENT_STEP, width // LATENT_STEP)
        timesteps = diffusion.leading(steps)
        return self._sample("first frame", unet, predict, "epsilon", shape, timesteps, self.noise(seed), progress)

    def keyframes(
        self, texts, first_frame, motion, noise_augmentation, guidance_text, guidance_image, steps, seed,
        progress=None, count=frames.KEYFRAMES,
    ):  # fmt: skip
        """Goes on from first_frame `[1, 4, 1, h, w]`; `motion` is a score; returns `[1, 4, count, h, w]`."""
        unet, null = self.keyframe
        noise = self.noise(seed)
        prompt, empty = self._branch_texts(texts, null, unet)
        condition = frames.first_frame_condition(
            first_frame, count, noise_augmentation, noise.augmentation(first_frame.shape)
        )
        condition = _to(condition, unet)
        scores = {
            "motion_score": torch.tensor([[motion]], device=condition.device),
            "noise_augmentation": torch.tensor([[noise_augmentation]], device=condition.device),
        }

        def predict(x, time):
            branches = [(prompt, condition), (empty, condition), (empty, torch.zeros_like(condition))]
            full, image, none = (unet(torch.cat([x, given], dim=1), time, text, **scores) for text, given in branches)
            return diffusion.guide_three(full, image, none, guidance_text, guidance_image)

        shape = (1, 4, count, *first_frame.shape[-2:])
        return self._sample("keyframes", unet, predict, "epsilon", shape, diffusion.leading(steps), noise, progress)

    def interpolate(self, texts, latents, skip_frames, guidance, steps, seed, progress=None):
        """Puts three frames into every gap of `[1, 4, t, h, w]`; returns `[1, 4, 4t - 3, h, w]`, the given kept."""
        unet, null = self.interpolation
        prompt, empty = self._branch_texts(texts, null, unet)
        given = _to(frames.neighbours(latents), unet)
        skip = torch.tensor([skip_frames], device=given.device)

        def predict(x, time):
            branches = [(prompt, given, True), (empty, torch.zeros_like(given), False)]
            cond, uncond = (
                unet(frames.between(sides, x), time, text, temporal_mask=[temporal],
                     skip_frames=skip, perturbation_time=torch.zeros_like(skip))
                for text, sides, temporal in branches
            )  # fmt: skip
            return diffusion.guide(cond, uncond, guidance)

        shape = (1, 12, given.shape[2], *given.shape[-2:])
        timesteps = diffusion.trailing(steps)
        noise = self.noise(seed)
        predicted = self._sample("interpolation", unet, predict, "velocity", shape, timesteps, noise, progress)
        return frames.interleave(latents, predicted.to(latents))

    def encode_image(self, image, width, height):
        """A Pillow image, fitted to `width` x `height` -> its latent `[1, 4, 1, height / 8, width / 8]`."""
        pixels = images.to_pixels(images.fit(image, width, height))
        return self.movq.encode(_to(pixels, self.movq))[:, :, None]

    def decode_image(self, latent):
        """A latent `[1, 4, 1, h, w]` -> a Pillow image."""
        return images.to_images(images.to_bytes(self.movq.decode(_to(latent[:, :, 0], self.movq))))[0]

    def decode_video(self, latents):
        """Latents `[1, 4, t, h, w]` -> 8-bit frames `[t, 8h, 8w, 3]`, on the CPU."""
        frames_first = _to(latents[0].transpose(0, 1), self.video_movq)
        chunks = frames_first.split(decode_chunks(frames_first.shape[0]))
        return torch.cat([images.to_bytes(self.video_movq.decode(chunk)).cpu() for chunk in chunks])

    def _encode(self, text):
        tokens = self.tokenizer(text)
        if tokens.cut:
            logging.warning("The prompt is longer than 128 tokens; the rest of it is left out.")
        device = _weight(self.text_model).device
        return self.text_model.encode(
            tokens.input_ids.to(device), tokens.attention_mask.to(device), dtype=_weight(self.text_model).dtype
        )

    def _branch_texts(self, texts, null_embedding, unet):
        positive, negative = texts
        negative = null_context(null_embedding, positive[0]) if negative is None else negative
        return [unet.read_text(_to(context, unet), mask) for context, mask in (positive, negative)]

    def _sample(self, stage, unet, predict, prediction, shape, timesteps, noise, progress):
        like = _weight(unet)

        def denoise(sample, timestep):
            output = predict(sample, torch.tensor([timestep], device=sample.device))
            return diffusion.predict_x0(sample, output, timestep, prediction)

        def callback(index, x0, sample):
            if progress:
                progress(stage, index, len(timesteps))

        samples = diffusion.sample_ddpm(denoise, noise.initial(shape).to(like), timesteps, noise.step, callback)
        if not samples.isfinite().all():
            raise ValueError(f"The {stage} ended in NaN or infinite numbers: load that U-Net in bfloat16 or float32.")
        return samples


def motion_score(motion):
    """The score of a motion's name. As published, an unknown name warns and means medium."""
    if motion not in frames.MOTION_SCORES:
        logging.warning("motion is %r, expected one of %s: medium is used.", motion, ", ".join(frames.MOTION_SCORES))
    return frames.MOTION_SCORES.get(motion, frames.MOTION_SCORES["medium"])


def _check_size(width, height):
    if min(width, height) < SIZE_STEP or width % SIZE_STEP or height % SIZE_STEP:
        raise ValueError(f"The size is {width}x{height}, expected multiples of {SIZE_STEP} pixels from {SIZE_STEP} on.")


def _weight(module):
    return next(module.parameters())


def _to(tensor, module):
    return tensor.to(_weight(module))


PARTS = {  # names of the published files, without their endings; converted ones keep them
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

    device_map: a device for all, or one for every name in PARTS (the projections go with the text encoder).
    dtype_map: likewise for types; left out, U-Nets on a GPU are float16 and all else float32, as published.
    Nothing is downloaded. Raises FileNotFoundError and CheckpointError with one sentence.
    """
    return load_pipeline({part: _find(cache_dir, part) for part in PARTS}, device_map, dtype_map)


def load_pipeline(paths, device_map, dtype_map=None):
    """The same from files of any name: `paths` has one for every name in PARTS."""
    models, nulls = {}, {}
    for part, model_class in _CLASSES.items():
        checkpoint = open_checkpoint(paths[part], expect=part)
        device, dtype = _placement(part, device_map, dtype_map)
        models[part] = _load(model_class(**checkpoint.config, **_FACTORY), checkpoint.state_dict(), device, dtype)
        nulls[part] = checkpoint.null_embedding
    return KandinskyVideoPipeline(
        _load_text_model(paths["text_encoder"], paths["projections"], device_map, dtype_map),
        load_tokenizer(paths["text_encoder"]),
        (models["keyframe_unet"], nulls["keyframe_unet"]),
        (models["interpolation_unet"], nulls["interpolation_unet"]),
        models["image_movq"],
        models["video_movq"],
    )


_FACTORY = {"operations": TorchOperations, "device": "meta"}


def _load_text_model(folder, projections_path, device_map, dtype_map):
    encoder = open_checkpoint(folder, expect="text_encoder")
    projections = open_checkpoint(projections_path, expect="projections")
    state = {f"text_encoder.{key}": value for key, value in encoder.state_dict().items()}
    state |= {f"projections.{key}": value for key, value in projections.state_dict().items()}
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
    stem = Path(folder) / PARTS[part]
    for path in (stem, stem.with_suffix(".safetensors"), stem.with_suffix(".pt")):
        if path.exists():
            return path
    raise FileNotFoundError(f"{stem.name}.safetensors or {stem.name}.pt is missing in {stem.parent.resolve()}.")
