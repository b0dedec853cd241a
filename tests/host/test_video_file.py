"""A video file through Load Video, Get Video Components and Encode Frames, on the server."""

import av
import numpy
import torch

from evaluation import benchmark
from tests.support.helpers import chain, link, node, saved
from training import world


def test_it_becomes_keyframes(server, run_graph):
    scene = benchmark.moving_scene(6, "extreme")
    pictures = ((world.draw(scene, torch.arange(5.0))[0] + 1) / 2).movedim(1, -1)
    with av.open(str(server.input / "drawn.mp4"), "w") as file:
        stream = file.add_stream("libx264", rate=3)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv444p"
        for image in pictures:
            frame = av.VideoFrame.from_ndarray((image.numpy() * 255).round().astype(numpy.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    graph = (
        chain(
            "frames",
            positive={"text": scene.captions()[0]},
            video={"samples": link("clip"), "steps": 10},
            more={
                "file": node("LoadVideo", file="drawn.mp4"),
                "parts": node("GetVideoComponents", video=link("file")),
                "clip": node(
                    "KandinskyVideoEncodeFrames", movq=link("movq"), images=link("parts"), width=64, height=64
                ),
            },
        )
        | saved("video")
        | chain("frames.file")
    )
    run = run_graph(graph)
    assert run.status == "success"
