"""The server that tests and demo run on: it has the pack, reports what happens, and says why it cannot go on."""

import sys
from pathlib import Path

import av
import pytest

from tools.comfy.client import ServerError
from tools.comfy.server import PACK, Server
from tools.host import Host

IMAGES = {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 32, "batch_size": 3, "color": 255}}
CLIP = {
    "1": IMAGES,
    "2": {"class_type": "CreateVideo", "inputs": {"images": ["1", 0], "fps": 2.0}},
    "3": {
        "class_type": "SaveVideo",
        "inputs": {"video": ["2", 0], "filename_prefix": "a/clip", "format": "mp4", "codec": "h264"},
    },
}
# The latent has sixteen channels where Kandinsky's have four, so the pack's node raises.
WRONG = {
    "1": {"class_type": "EmptySD3LatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
    "2": {"class_type": "KandinskyVideoFromLatent", "inputs": {"latent": ["1", 0], "kind": "keyframes"}},
    "3": {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}},
}


def first_frame(steps):
    """A graph that samples for `steps` steps."""
    return {
        "unet": {
            "class_type": "KandinskyVideoUNetLoader",
            "inputs": {"unet_name": "kv-tiny/keyframes.safetensors", "weight_dtype": "default"},
        },
        "encoder": {
            "class_type": "KandinskyVideoTextEncoderLoader",
            "inputs": {
                "text_encoder_name": "kv-tiny/flan-ul2",
                "projections_name": "kv-tiny/t5_projections.safetensors",
                "weight_dtype": "default",
            },
        },
        "text": {
            "class_type": "KandinskyVideoTextEncode",
            "inputs": {"text_encoder": ["encoder", 0], "text": "a boat", "projection": "base"},
        },
        "frame": {
            "class_type": "KandinskyVideoFirstFrame",
            "inputs": {
                "model": ["unet", 0],
                "positive": ["text", 0],
                "width": 64,
                "height": 64,
                "seed": 0,
                "steps": steps,
                "guidance": 5.0,
            },
        },
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["frame", 0]}},
    }


def test_only_this_pack_is_loaded(server):
    modules = {node["python_module"] for node in server.client.object_info().values()}
    assert {name for name in modules if name.startswith("custom_nodes")} == {f"custom_nodes.{PACK}"}


def test_a_graph_saves_its_files_in_the_work_folder(server, run_graph):
    done = run_graph(CLIP)
    (saved,) = done.files()
    path = server.output / saved["subfolder"] / saved["filename"]
    assert server.client.download(saved) == path.read_bytes()
    with av.open(str(path)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
    assert server.work in path.parents


def test_queue_and_wait(server):
    done = server.client.wait(server.client.queue(CLIP))
    assert done.status == "success"
    assert done.outputs["3"]["images"]


def test_an_error_is_reported(server):
    done = server.client.run(WRONG)
    assert done.status == "error"
    assert "[1, 16, 8, 8]" in done.error
    assert done.outputs == {}


def test_a_wrong_graph_is_refused(server):
    wrong = CLIP | {"1": {**IMAGES, "inputs": {**IMAGES["inputs"], "width": -64}}}
    with pytest.raises(ServerError, match="EmptyImage: Value -64 smaller than min"):
        server.client.run(wrong)
    with pytest.raises(ServerError, match="NoSuchNode"):
        server.client.run({"1": {"class_type": "NoSuchNode", "inputs": {}}})


def test_a_graph_that_takes_too_long_is_stopped(server, run_graph):
    with pytest.raises(ServerError, match="not done after 1 s"):
        server.client.run(first_frame(steps=999), timeout=1)
    assert run_graph(CLIP).status == "success"


def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    (tmp_path / "main.py").write_text("raise SystemExit('nothing works here')")
    with pytest.raises(ServerError, match="stopped while it started[^$]*nothing works here"):
        Server(Host(tmp_path, "0.30.0", Path(sys.executable)), tmp_path / "work", device="cpu").__enter__()


@pytest.mark.thorough
def test_a_server_that_dies_is_noticed(comfyui, tmp_path):
    def kill(kind, data):
        if kind == "progress":
            server.process.kill()

    with Server(Host(comfyui, "0.30.0", Path(sys.executable)), tmp_path, device="cpu") as server:
        with pytest.raises(ServerError, match="closed the connection"):
            server.client.run(first_frame(steps=1000), kill)
    assert server.process.returncode is not None
