"""The templates of experiments: each does what its note says, at its own settings, in numbers."""

import pytest
import torch

from tests.support.helpers import latents, picture, saved
from tests.support.workflow_runs import named, pixels_of
from tools.authoring import templates
from training import world

# In fewer steps, test_workflows.py runs each of them.
pytestmark = pytest.mark.thorough


@pytest.fixture
def run_template(server, run_graph):
    """Runs a template with the latents of some of its nodes saved; returns (the latents by id, the run)."""

    def run(name, *ids, **more):
        graph = templates.api_graph(name)
        for id in ids:
            graph |= saved(id)
        done = run_graph(graph | more)
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
    expected = latents(server, run_graph({k: v for id in ids for k, v in saved(id).items()} | whole))
    by_shape = {tuple(latent.shape): latent for latent in expected.values()}
    for name, latent in found.items():
        assert torch.equal(latent, by_shape[tuple(latent.shape)]), name
    seen = world.read(clip(server, done))
    assert [seen.colour.mode().values, seen.shape.mode().values, world.read_direction(seen.centre[None])] == (
        named(prompt)[:3]
    )


def names(seen, kind):
    return [list(getattr(world, kind))[index] for index in getattr(seen, kind[:-1].lower()).tolist()]


def left_and_right(pixels):
    """What both halves of a clip of two clips side by side show."""
    return [world.read(half.contiguous()) for half in pixels.split(world.SIZE, dim=-1)]


def direction(seen):
    return list(world.DIRECTIONS)[world.read_direction(seen.centre[None]).item()]


def change(latent):
    """How much a latent changes from frame to frame, `[F - 1]`."""
    return latent.diff(dim=2).square().mean((0, 1, 3, 4)).sqrt()


def test_prompt_switch(server, run_template):
    _, done = run_template("prompt-switch")
    seen = world.read(clip(server, done))
    assert seen.found.all() and direction(seen) == "right"
    found = names(seen, "COLOURS")
    assert found[:21] == ["red"] * 21, "up to keyframe 5, every fourth frame of 45"
    assert found[24:] == ["blue"] * 21, "from keyframe 6 on"


def test_motion_curve(server, run_template, run_graph):
    graph = templates.api_graph("motion-curve")
    graph["single"] = {
        "class_type": "KandinskyVideoDecodeImage",
        "inputs": {"movq": ["movq", 0], "samples": ["keyframes", 0]},
    }
    graph["file"] = {"class_type": "SaveImage", "inputs": {"images": ["single", 0], "filename_prefix": "keyframe"}}
    done = run_graph(graph)
    files = [server.client.download(file) for file in done.files() if file["filename"].startswith("keyframe")]
    x = world.read(torch.stack([2 * picture(file).movedim(-1, 0) - 1 for file in files])).centre[:, 0]
    slow, fast = x[5] - x[0], x[11] - x[6]
    print(f"first five keyframes {slow:.1f} pixels, last five {fast:.1f}")
    assert 0 < slow and fast > 2 * slow


def test_guidance_window(server, run_template):
    _, done = run_template("guidance-window")
    guided, early = left_and_right(clip(server, done))
    assert direction(guided) == "left" != direction(early)


def test_first_and_last_frame(server, run_template):
    found, done = run_template("first-and-last-frame", "last", "keyframes")
    assert torch.equal(found["keyframes"][:, :, 11:], found["last"])
    seen = world.read(clip(server, done))
    start, end = (torch.tensor([x + 9.0, 32.0]) for x in (8, 22))
    assert seen.found.all() and (seen.centre[0] - start).norm() < 1.5 and (seen.centre[-1] - end).norm() < 1.5
    largest = change(found["keyframes"]).max() / change(found["keyframes"]).median()
    print(f"largest change from keyframe to keyframe {largest:.2f} times the middle one")
    assert largest < 2


def test_video_to_video(server, run_template):
    _, done = run_template("video-to-video")
    red, blue = left_and_right(clip(server, done))
    assert set(names(red, "COLOURS")) == {"red"} and set(names(blue, "COLOURS")) == {"blue"}
    assert direction(red) == direction(blue) == "right"
    distance = (red.centre - blue.centre).norm(dim=1).mean()
    print(f"mean distance of the ways {distance:.2f} pixels")
    assert distance < 2.5


def test_extend_clip(server, run_template):
    found, done = run_template("extend-clip", "first_clip", "joined", "video")
    joined = found["joined"]
    assert joined.shape[2] == 20 and torch.equal(joined[:, :, :12], found["first_clip"])
    for name, samples, seam in (("keyframes", joined, slice(11, 12)), ("video", found["video"], slice(44, 48))):
        changes = change(samples)
        others = torch.cat([changes[: seam.start], changes[seam.stop :]])
        print(f"{name}: change at the seam {changes[seam].max():.3f}, elsewhere up to {others.max():.3f}")
        assert changes[seam].max() <= others.max()
    seen = world.read(clip(server, done))
    assert seen.found.all() and seen.centre[-1, 0] > seen.centre[44, 0] + 5


def test_loop(server, run_template):
    found, done = run_template("loop", "joined", "loop")
    keyframes, loop = found["joined"], found["loop"]
    assert torch.equal(keyframes[:, :, -1], keyframes[:, :, 0]) and loop.shape[2] == 88
    around = change(torch.cat([loop, loop[:, :, :1]], dim=2))
    print(f"change into the first frame {around[-1]:.3f}, elsewhere up to {around[:-1].max():.3f}")
    assert around[-1] <= around[:-1].max()
    x = world.read(clip(server, done)).centre[:, 0]
    assert x.argmax() in range(36, 53) and x.max() > x[0] + 8, "there and back"
