"""A whole clip of the tiny models, made in this process: what its nodes gave, and nodes to go on with."""

import pytest

from tests.support.helpers import chain, run_here
from tests.support.tiny_parts import Calls

PROMPT = "a red circle moving right on a grey background"
SETTINGS = {
    "positive": {"text": PROMPT},
    "first_frame": {"steps": 50},
    "video": {"steps": 10},
    "keyframes": {"frames": 12, "steps": 50, "image_guidance": 3.0},
}


class Clip(Calls):
    """results: node id of helpers.CHAIN -> its first output; keyframes: Sample Keyframes' inputs, to be changed."""

    def __init__(self, pack_nodes):
        super().__init__(pack_nodes)
        graph = chain("frames", **SETTINGS)
        self.results = run_here(pack_nodes, graph)
        self.keyframes = {
            name: self.results[value[0]] if isinstance(value, list) else value
            for name, value in graph["keyframes"]["inputs"].items()
        }

    def sample(self, **changes):
        """The samples of Sample Keyframes with changed inputs."""
        return self.node("Keyframes", **self.keyframes | changes)["samples"]

    def interpolate(self, samples, **changes):
        inputs = {
            "model": self.results["interpolation_unet"],
            "positive": self.results["positive"],
            "skip_frames": "auto",
            "guidance": 0.5,
            "steps": 10,
            "seed": 7,
        }
        return self.node("Interpolate", samples=samples, **inputs | changes)

    def pixels(self, latent):
        """Frames `[t, 3, 64, 64]` in [-1, 1] of a latent, or of its samples."""
        samples = latent if isinstance(latent, dict) else {"samples": latent, "kind": "keyframes"}
        images = self.node("DecodeVideo", video_movq=self.results["video_movq"], samples=samples)
        return 2 * images.movedim(-1, 1) - 1


@pytest.fixture(scope="session")
def clip(pack_nodes):
    return Clip(pack_nodes)
