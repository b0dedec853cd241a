"""The training stages of the tiny Kandinsky Video, each run to its end by a Trainer and resumed where it stopped.

What a stage needs of an earlier one it takes from that one's finished state in the work folder. Several workers may run
the same stage together, each with its share of every batch.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.text_encoder import BASE, INTERPOLATION, TextModel

from . import caption_encoder, data, losses, tiny, workers, world
from .tiny import TrainableOperations, trainable
from .trainer import Loss, Trainer, load_averages

BATCH, KEYFRAME_BATCH = 16, 32
FULL_CAPTIONS = 0.75  # share of batches whose captions say everything
COARSE_STEPS = 4354  # of keyframes: first what is decided under the most noise, then all alike
KEYFRAME_CLIPS, INTERPOLATION_CLIPS = 16000, 1200


class Stages:
    """One method a stage; `scale` is the share of the full run's steps and clips, for a trial."""

    def __init__(self, folder: Path, scale: float = 1.0, device: str = "cpu"):
        self.folder, self.scale, self.device = Path(folder), scale, torch.device(device)

    def text(self):
        """The encoder and both projections, in place of Flan-UL2's own training; frozen from then on."""
        text, heads = self._text_model(), caption_encoder.Heads().to(self.device)
        modules = {"text": text, "heads": heads}
        rows = workers.share(BATCH * 4)

        def loss(step, generator):
            return caption_encoder.loss(text, heads, generator, rows)

        self._train("text", modules, 3000, 1e-3, loss)

    def movq(self):
        movq = self._movq()
        self._train("movq", {"movq": movq}, 5000, 2e-3, self._pictures_loss(movq))

    def movq_decoder(self):
        """The decoder goes on alone: the latents are settled, so that the U-Nets can begin."""
        movq = self._decoder_of("movq")
        self._train("movq_decoder", {"movq": movq}, 4000, 1e-3, self._pictures_loss(movq))

    def video_movq(self):
        """The temporal decoder begins as the image decoder; one clip a worker, and more noise to tell from motion."""
        movq = self._decoder_of("movq_decoder", temporal=True)

        def loss(step, generator):
            scenes = world.sample_scenes(1, data.sample_motion(1, generator), generator)
            rate = 4.0 ** torch.randint(3, (1,), generator=generator)
            start = torch.rand(1, generator=generator) * 7
            frames = world.draw(scenes, start + torch.arange(5.0) / rate)[0].to(self.device)
            # Not in bfloat16: on some CPUs torch's Conv3d then has gradients that are not finite.
            return losses.reconstruction_loss(movq, frames, generator, latent_noise=0.16, change_weight=1.0)

        self._train("video_movq", {"video_movq": movq}, 2500, 1e-3, loss)

    def _pictures_loss(self, movq: MoVQ) -> Loss:
        def loss(step, generator):
            # Every fourth batch at twice the size, as first frames are drawn; as many pixels each.
            count, size = (2, 2 * world.SIZE) if step % 4 == 0 else (8, world.SIZE)
            count = workers.share(count)
            scenes = world.sample_scenes(count, torch.full((count,), 10.0), generator)
            time = torch.rand(1, generator=generator) * (world.KEYFRAMES - 1)
            frames = world.draw(scenes, time, size)[:, 0].to(self.device)
            return losses.reconstruction_loss(movq, frames, generator)

        return loss

    def _decoder_of(self, stage: str, temporal: bool = False) -> MoVQ:
        """A MoVQ with a finished stage's weights, of which only the decoder learns."""
        movq = self._movq(temporal)
        movq.load_state_dict(self._finished(stage, movq=self._movq()).state_dict(), strict=False)
        movq.encoder.requires_grad_(False)
        movq.quant_conv.requires_grad_(False)
        return movq

    def keyframes(self):
        """First frames and keyframes by turns, one U-Net."""
        unet, nulls = trainable(KeyframeUNet(**tiny.KEYFRAME_UNET, **self._factory())), self._null()
        text = self._finished("text", text=self._text_model())
        clips = self._clips(data.keyframe_clips, KEYFRAME_CLIPS)

        def loss(step, generator):
            size = workers.share(2 * KEYFRAME_BATCH if step % 3 == 0 else KEYFRAME_BATCH)  # a frame is less work
            rows, given = self._batch(text, clips, size, generator)
            weights = {"most_weight": 100.0, "towards_noise": 2.0} if step < COARSE_STEPS else {"most_weight": 20.0}
            if step % 3 == 0:
                latents = clips["first_frame"][rows].float()[:, :, None].to(self.device)
                return losses.first_frame_loss(unet, latents, given, nulls["null"], generator, **weights)
            latents = clips["keyframes"][rows].float().transpose(1, 2).to(self.device)
            motion = clips["motion_score"][rows]
            return losses.keyframe_loss(unet, latents, given, nulls["null"], motion, generator, **weights)

        self._train("keyframes", {"unet": unet, "nulls": nulls}, 12000, 2e-3, loss)

    def interpolation(self):
        """Both rates by turns, and both projections."""
        unet, nulls = trainable(InterpolationUNet(**tiny.INTERPOLATION_UNET, **self._factory())), self._null()
        text = self._finished("text", text=self._text_model())
        clips = self._clips(data.interpolation_clips, INTERPOLATION_CLIPS)

        def loss(step, generator):
            projection = (BASE, INTERPOLATION)[step // 2 % 2]
            rows, given = self._batch(text, clips, workers.share(BATCH), generator, projection)
            rate, skip = (("medium", 3), ("high", 1))[step % 2]
            latents = clips[rate][rows].float().transpose(1, 2).to(self.device)
            skips = torch.full((len(rows),), skip)
            return losses.interpolation_loss(unet, latents, given, nulls["null"], skips, generator)

        self._train("interpolation", {"unet": unet, "nulls": nulls}, 6000, 1e-3, loss)

    def finished(self) -> dict[str, Any]:
        """The trained parts: text, movq, video_movq, and keyframes and interpolation as (U-Net, null embedding)."""
        factory, parts = self._factory(), {}
        parts["text"] = self._finished("text", text=self._text_model())
        parts["movq"] = self._finished("movq_decoder", movq=self._movq())
        parts["video_movq"] = self._finished("video_movq", video_movq=self._movq(temporal=True))
        unets = {
            "keyframes": KeyframeUNet(**tiny.KEYFRAME_UNET, **factory),
            "interpolation": InterpolationUNet(**tiny.INTERPOLATION_UNET, **factory),
        }
        for name, unet in unets.items():
            nulls = self._null()
            self._finished(name, unet=unet, nulls=nulls)
            parts[name] = unet, nulls["null"].detach()
        return parts

    def _train(self, name: str, modules: dict[str, nn.Module], steps: int, learning_rate: float, loss: Loss):
        Trainer(name, modules, self.folder, self._steps(steps), learning_rate).run(loss)

    def _steps(self, count):
        return max(1, round(count * self.scale))

    def _finished(self, name, **modules):
        """Fills the modules with the averaged weights of a finished stage; returns the first. They are frozen."""
        load_averages(self.folder / f"{name}.state.pt", modules, self.device)
        for module in modules.values():
            module.requires_grad_(False)
        return next(iter(modules.values()))

    def _clips(self, make, count):
        def movq():
            return self._finished("movq", movq=self._movq())

        return workers.in_turn(lambda: make(self.folder, movq, max(20, round(count * self.scale))))

    def _factory(self):
        torch.manual_seed(0)
        return {"operations": TrainableOperations, "device": self.device}

    def _text_model(self):
        return trainable(TextModel(tiny.encoder_config(), tiny.CONTEXT_DIM, **self._factory()))

    def _movq(self, temporal=False):
        return trainable(MoVQ(**tiny.MOVQ, temporal=temporal, **self._factory()), merge=0.1)

    def _null(self):
        return nn.ParameterDict({"null": nn.Parameter(torch.randn(tiny.CONTEXT_DIM, device=self.device))})

    @torch.no_grad()
    def _batch(self, text, clips, size, generator, projection=BASE):
        """Random rows of `clips`, and the text (context, mask) of captions of one template."""
        rows = torch.randint(len(clips["motion_score"]), (size,), generator=generator)
        template = 0
        if torch.rand(1, generator=generator) > FULL_CAPTIONS:
            template = int(torch.randint(1, len(world.TEMPLATES), (1,), generator=generator))
        captions = data.scenes(clips, rows).captions(template)
        ids, mask = caption_encoder.tokens(captions, self.device)
        return rows, text.encode(ids, mask, projection)
