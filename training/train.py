"""Trains every part of the tiny Kandinsky Video from nothing: `python -m training.train`.

Stages, each resumed where a killed run stopped: movq, video_movq, keyframes (with the text encoder), interpolation.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import nn

from kv_core.conversion import appearing, write_safetensors
from kv_core.detection import METADATA_KEY
from kv_core.interpolation_unet import InterpolationUNet
from kv_core.keyframe_unet import KeyframeUNet
from kv_core.movq import MoVQ
from kv_core.text_encoder import BASE, INTERPOLATION, TextModel

from . import data, losses, tiny, world
from .tiny import TrainableOperations, trainable
from .trainer import Trainer

FULL_CAPTIONS = 0.75  # share of batches whose captions say everything


class Tiny:
    """The five parts with what trains beside them, and the folder their training lives in."""

    def __init__(self, folder, scale=1.0, device="cpu"):
        self.folder, self.scale, self.device = Path(folder), scale, device
        torch.manual_seed(0)
        factory = {"operations": TrainableOperations, "device": device}
        self.movq = trainable(MoVQ(**tiny.MOVQ, **factory))
        self.video_movq = trainable(MoVQ(**tiny.MOVQ, temporal=True, **factory), merge=0.1)
        encoder = tiny.ENCODER | {"vocab_size": len(tiny.vocabulary())}
        self.text = trainable(TextModel(encoder, tiny.CONTEXT_DIM, **factory))
        self.keyframe_unet = trainable(KeyframeUNet(**tiny.UNET, **factory))
        self.interpolation_unet = trainable(InterpolationUNet(**tiny.UNET, **factory))
        self.nulls = nn.ParameterDict({
            "keyframes": nn.Parameter(torch.randn(tiny.CONTEXT_DIM, device=device)),
            "interpolation": nn.Parameter(torch.randn(tiny.CONTEXT_DIM, device=device)),
        })  # fmt: skip

    def steps(self, count):
        return max(1, round(count * self.scale))

    def encode(self, captions, projection=BASE):
        """Captions of one template -> (context, mask): as the pipeline's, without the padding it cuts off again."""
        words = tiny.vocabulary()
        ids = torch.tensor([[words[word] for word in text.split()] + [1, 0] for text in captions], device=self.device)
        mask = torch.ones_like(ids)
        mask[:, -1] = 0  # the one row of padding that the pipeline keeps
        return self.text.encode(ids, mask, projection)


def train_movq(parts):
    def loss(step, generator):
        # Every fourth batch at twice the size, as first frames are drawn; as many pixels each.
        count, size = (4, 2 * world.SIZE) if step % 4 == 0 else (16, world.SIZE)
        scenes = world.sample_scenes(count, torch.ones(count), generator)
        time = torch.rand(1, generator=generator) * (world.KEYFRAMES - 1)
        frames = world.draw(scenes, time, size)[:, 0].to(parts.device)
        return losses.reconstruction_loss(parts.movq, frames, generator)

    _finish(Trainer("movq", {"movq": parts.movq}, parts.folder, parts.steps(6000), 2e-3).run(loss))


def train_video_movq(parts):
    """The temporal decoder begins as the image decoder; the encoder is shared, so it stays as it is."""
    parts.video_movq.load_state_dict(parts.movq.state_dict(), strict=False)
    parts.video_movq.encoder.requires_grad_(False)
    parts.video_movq.quant_conv.requires_grad_(False)

    def loss(step, generator):
        scores = torch.tensor([1.0, 10.0, 50.0, 100.0])[torch.randint(4, (1,), generator=generator)]
        scenes = world.sample_scenes(1, scores, generator)
        rate = 4.0 ** torch.randint(3, (1,), generator=generator)
        start = torch.rand(1, generator=generator) * 7
        frames = world.draw(scenes, start + torch.arange(5.0) / rate)[0].to(parts.device)
        return losses.reconstruction_loss(parts.video_movq, frames, generator)

    _finish(Trainer("video_movq", {"video_movq": parts.video_movq}, parts.folder, parts.steps(4000), 1e-3).run(loss))


def train_keyframes(parts, clips):
    """First frames and keyframes by turns, one U-Net; the text encoder learns with it."""

    def loss(step, generator):
        rows, text, motion = _batch(parts, clips, generator)
        if step % 3 == 0:
            latents = clips["first_frame"][rows].float()[:, :, None].to(parts.device)
            return losses.first_frame_loss(parts.keyframe_unet, latents, text, parts.nulls["keyframes"], generator)
        latents = clips["keyframes"][rows].float().transpose(1, 2).to(parts.device)
        null = parts.nulls["keyframes"]
        return losses.keyframe_loss(parts.keyframe_unet, latents, text, null, motion, generator)

    modules = {"unet": parts.keyframe_unet, "text": parts.text, "nulls": parts.nulls}
    _finish(Trainer("keyframes", modules, parts.folder, parts.steps(20000), 1e-3).run(loss))


def train_interpolation(parts, clips):
    """Both rates by turns. The encoder is done; the second projection learns here, the first serves half the time."""
    parts.text.requires_grad_(False)
    if not (parts.folder / "interpolation.state.pt").is_file():
        parts.text.projections[INTERPOLATION].load_state_dict(parts.text.projections[BASE].state_dict())
    parts.text.projections[INTERPOLATION].requires_grad_(True)

    def loss(step, generator):
        projection = (BASE, INTERPOLATION)[step // 2 % 2]
        rows, text, _ = _batch(parts, clips, generator, projection)
        rate, skip = (("medium", 3), ("high", 1))[step % 2]
        latents = clips[rate][rows].float().transpose(1, 2).to(parts.device)
        skips = torch.full((len(rows),), skip)
        null = parts.nulls["interpolation"]
        return losses.interpolation_loss(parts.interpolation_unet, latents, text, null, skips, generator)

    modules = {
        "unet": parts.interpolation_unet, "nulls": parts.nulls, "projection": parts.text.projections[INTERPOLATION]
    }  # fmt: skip
    _finish(Trainer("interpolation", modules, parts.folder, parts.steps(8000), 1e-3).run(loss))


def _batch(parts, clips, generator, projection=BASE, size=16):
    rows = torch.randint(len(clips["motion_score"]), (size,), generator=generator)
    template = 0
    if torch.rand(1, generator=generator) > FULL_CAPTIONS:
        template = int(torch.randint(1, len(world.TEMPLATES), (1,), generator=generator))
    captions = data.scenes(clips, rows).captions(template)
    return rows, parts.encode(captions, projection), clips["motion_score"][rows]


def _finish(trainer):
    """From here on the averaged weights are the module's."""
    for name, module in trainer.modules.items():
        module.load_state_dict(trainer.averages()[name])


def write(parts, folder, dtype=torch.float16):
    """Writes the files that the loaders take, under `<folder>/<category>/kv-tiny`."""
    unets, vae, text = (Path(folder, name, "kv-tiny") for name in ("diffusion_models", "vae", "text_encoders"))
    encoder = tiny.ENCODER | {"vocab_size": len(tiny.vocabulary())}
    projections = {f"{name}.{key}": value for name, module in parts.text.projections.items()
                   for key, value in module.state_dict().items()}  # fmt: skip
    files = {
        unets / "keyframes.safetensors": ("keyframe_unet", tiny.UNET, parts.keyframe_unet.state_dict()
                                          | {"null_embedding": parts.nulls["keyframes"].detach()}),
        unets / "interpolation.safetensors": ("interpolation_unet", tiny.UNET, parts.interpolation_unet.state_dict()
                                              | {"null_embedding": parts.nulls["interpolation"].detach()}),
        vae / "movq.safetensors": ("image_movq", tiny.MOVQ, parts.movq.state_dict()),
        vae / "video_movq.safetensors": ("video_movq", tiny.MOVQ | {"temporal": True}, parts.video_movq.state_dict()),
        text / "flan-ul2/model.safetensors": ("text_encoder", encoder, parts.text.text_encoder.state_dict()),
        text / "t5_projections.safetensors": ("projections", {}, projections),
    }  # fmt: skip
    for path, (part, config, state) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {METADATA_KEY: json.dumps({"part": part, "config": config})}
        write_safetensors(path, {name: value.cpu().contiguous() for name, value in state.items()}, metadata, dtype)
    for path, content in tiny.text_files(text / "flan-ul2", tiny.ENCODER, tiny.vocabulary()).items():
        with appearing(path) as partial:
            partial.write_text(content, encoding="utf-8")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("training-work"), help="folder for states, curves and clips")
    parser.add_argument("--out", type=Path, default=Path("models"), help="folder for the finished files")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the published steps, for a trial")
    parser.add_argument("--clips", type=int, default=6000, help="clips to train on")
    options = parser.parse_args(arguments)
    parts = Tiny(options.work, options.scale)
    train_movq(parts)
    train_video_movq(parts)
    clips = data.make(options.work / "clips.safetensors", parts.movq, options.clips)
    train_keyframes(parts, clips)
    train_interpolation(parts, clips)
    write(parts, options.out)


if __name__ == "__main__":
    main()
