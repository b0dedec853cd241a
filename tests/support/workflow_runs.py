"""What the workflows save, ways to run them in few steps, and what their clips and files hold."""

import io

import av
import numpy
import pytest
import torch

from training import caption_encoder as words

KEYFRAMES_A_SECOND = 12 / 5.5  # which longer clips keep

# name -> frames, width and height of what it saves, and frames a second where it does not last 5.5 seconds
VIDEOS = {
    "text-to-video-low": (12, 64, 64),
    "text-to-video-medium": (45, 64, 64),
    "text-to-video-high": (177, 64, 64),
    "image-to-video": (45, 64, 64),
    "morph": (17, 64, 64),
    "all-in-one": (45, 64, 64),
    "compare-decoders": (45, 128, 64),
    "custom-sampling": (45, 64, 64),
    "prompt-switch": (45, 64, 64),
    "motion-curve": (45, 64, 64),
    "guidance-window": (12, 128, 64),
    "first-and-last-frame": (45, 64, 64),
    "video-to-video": (12, 128, 64),
    "extend-clip": (77, 64, 64, KEYFRAMES_A_SECOND * 77 / 20),
    "loop": (88, 64, 64, KEYFRAMES_A_SECOND * 89 / 23),
}
# Run by test_looking_templates.py.
LOOKING = {
    "interpolate-video",
    "cross-fade",
    "two-projections",
    "merged-unets",
    "blocks-off",
    "first-frame-from-another-model",
    "motion-grid",
    "attention-maps",
    "look-inside",
}

FEWER_STEPS = {50: 2, 20: 2, 10: 1}


def quick(graph):
    """The graph with fewer steps."""
    for node in graph.values():
        if "steps" in node["inputs"]:
            node["inputs"]["steps"] = FEWER_STEPS[node["inputs"]["steps"]]
    return graph


def check_video(content, frames, width, height, rate=None):
    rate = rate or frames / 5.5
    with av.open(io.BytesIO(content)) as video:
        assert "mp4" in video.format.name
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert {(frame.width, frame.height) for frame in video.decode(stream)} == {(width, height)}
        assert stream.frames == frames
        assert float(stream.average_rate) == pytest.approx(rate, abs=1e-3)
        assert float(stream.duration * stream.time_base) == pytest.approx(frames / rate, abs=0.01)


def saved(server, run, suffix):
    return [server.client.download(file) for file in run.files() if file["filename"].endswith(suffix)]


def pixels_of(content):
    """Frames `[t, 3, H, W]` in [-1, 1] of a video file."""
    with av.open(io.BytesIO(content)) as video:
        frames = numpy.stack([frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)])
    return torch.from_numpy(frames).movedim(-1, 1) / 127.5 - 1


def named(prompt):
    """Numbers of the colour, shape, direction and background that a prompt of the toy world names."""
    ids, _ = words.tokens([prompt])
    return [words.label(ids, names).item() - 1 for names in words.ATTRIBUTES]


def graphs_of(workflow):
    """The workflow itself, and its subgraphs."""
    return [workflow, *workflow.get("definitions", {}).get("subgraphs", [])]
