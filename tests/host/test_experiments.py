"""The templates of experiments: each does what its note says, at its own settings, in numbers."""

import pytest
import torch

from tests.host.helpers import latents, saved
from tests.host.test_workflows import named, pixels_of
from tools import templates
from training import world


@pytest.fixture
def run_template(server, run_graph):
    """Runs a template with the latents of some of its nodes saved; returns (the latents by id, the run)."""

    def run(name, *ids, **more):
        graph = templates.api_graph(name)
        for id in ids:
            graph |= saved(id)
        done = run_graph(graph | more, timeout=120)
        return {id: latents(server, done)[f"{id}.file"] for id in ids}, done

    return run


def clip(server, done):
    [file] = [file for file in done.files() if file["filename"].endswith(".mp4")]
    return pixels_of(server.client.download(file))


def test_custom_sampling_is_text_to_video_taken_apart(server, run_template, run_graph):
    found, done = run_template("custom-sampling", "first_frame", "keyframes", "video")
    prompt = templates.api_graph("custom-sampling")["prompt"]["inputs"]["text"]
    whole = templates.api_graph("text-to-video-medium")
    whole["prompt"]["inputs"]["text"] = prompt
    for node in whole.values():
        seeds = {"KandinskyVideoFirstFrame": 1, "KandinskyVideoKeyframes": 2, "KandinskyVideoInterpolate": 3}
        if node["class_type"] in seeds:
            node["inputs"]["seed"] = seeds[node["class_type"]]
    ids = {id for id, node in whole.items() if node["class_type"] in seeds}
    expected = latents(server, run_graph({k: v for id in ids for k, v in saved(id).items()} | whole, timeout=120))
    by_shape = {tuple(latent.shape): latent for latent in expected.values()}
    for name, latent in found.items():
        assert torch.equal(latent, by_shape[tuple(latent.shape)]), name
    seen = world.read(clip(server, done))
    assert [seen.colour.mode().values, seen.shape.mode().values, world.read_direction(seen.centre[None])] == (
        named(prompt)[:3]
    )
