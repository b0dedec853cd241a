"""The tiny trained models in this process, and what their clips show."""

import pytest
import torch

from tests.support.helpers import CHAIN
from training import world

KEYFRAMES = {
    "frames": 12,
    "motion": "medium",
    "motion_score": 10,
    "noise_augmentation": 20,
    "text_guidance": 5.0,
    "image_guidance": 3.0,
    "seed": 7,
}
COLOURS, SHAPES = list(world.COLOURS), list(world.SHAPES)


def scene(colour, shape, direction, centre, background="black"):
    """A scene of the toy world at medium speed."""
    kinds = ((world.SHAPES, shape), (world.COLOURS, colour), (world.BACKGROUNDS, background))
    indices = [torch.tensor([list(names).index(name)]) for names, name in (*kinds, (world.DIRECTIONS, direction))]
    centre, radius, speed = torch.tensor([centre], dtype=torch.float32), torch.tensor([9.5]), torch.tensor([1.2])
    return world.Scenes(*indices, centre, radius, speed)


class Calls:
    """The nodes by their short names, called on Python values in this process."""

    def __init__(self, pack_nodes):
        self._nodes = pack_nodes

    def nodes(self, name, **inputs):
        """All outputs of a node."""
        with torch.inference_mode():
            return self._nodes[f"KandinskyVideo{name}"].execute(**inputs).args

    def node(self, name, **inputs):
        return self.nodes(name, **inputs)[0]


class Tiny(Calls):
    """The tiny models' parts, and what the nodes make with them."""

    def __init__(self, pack, pack_nodes):
        super().__init__(pack_nodes)
        self.pack = pack
        loaders = ("keyframe_unet", "interpolation_unet", "text_encoder", "movq", "video_movq")
        self.unet, self.interpolation_unet, self.encoder, self.movq, self.video_movq = (
            self.node(CHAIN[name]["class_type"].removeprefix("KandinskyVideo"), **CHAIN[name]["inputs"])
            for name in loaders
        )

    def text(self, text):
        return self.node("TextEncode", text_encoder=self.encoder, text=text, projection="base")

    def encode(self, scenes, times):
        """The latent `[1, 4, t, 8, 8]` of a scene's true frames."""
        with torch.inference_mode():
            frames = [self.movq.encode(frame[None]) for frame in world.draw(scenes, torch.as_tensor(times))[0]]
        return torch.cat(frames).transpose(0, 1)[None].contiguous()

    def frame(self, scenes, time=0.0):
        return self.latent("frame", self.encode(scenes, [time]))

    def latent(self, kind, samples, **more):
        return self.pack.nodes.sockets.latent(kind, samples, **more)

    def keyframes(self, scenes, text, **changes):
        """Sample Keyframes from a scene's first frame at the published settings."""
        positive = self.text(text) if isinstance(text, str) else text
        given = {"model": self.unet, "positive": positive, "first_frame": self.frame(scenes), "steps": 50}
        return self.node("Keyframes", **KEYFRAMES | given | changes)

    def pixels(self, latent):
        """Frames `[t, 3, 64, 64]` in [-1, 1]."""
        images = self.node("DecodeVideo", video_movq=self.video_movq, samples=latent)
        return 2 * images.movedim(-1, 1) - 1

    def read(self, latent):
        return world.read(self.pixels(latent))

    def read_single(self, latent):
        """The same of every frame decoded by itself: the temporal decoder draws neighbours together."""
        images = self.node("DecodeImage", movq=self.movq, samples=latent)
        return world.read(2 * images.movedim(-1, 1) - 1)


def colours(seen):
    return [COLOURS[index] for index in seen.colour.tolist()]


def sample(guider, latent, sigmas, sampler=None, noise=None):
    from comfy_extras.nodes_custom_sampler import Noise_RandomNoise, SamplerCustomAdvanced

    with torch.inference_mode():
        return SamplerCustomAdvanced.execute(
            noise or Noise_RandomNoise(KEYFRAMES["seed"]), guider, sampler, sigmas, latent
        ).args[0]


def sigmas(tiny, spacing="leading", steps=8, denoise=1.0, model=None):
    return tiny.node("Sigmas", model=model or tiny.unet, spacing=spacing, steps=steps, denoise=denoise)


@pytest.fixture(scope="session")
def tiny(pack, pack_nodes):
    return Tiny(pack, pack_nodes)
