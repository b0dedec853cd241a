"""What a user of the real server sees: every node, the same clip from the same seed, progress, previews, cancel."""

import io
import time

import psutil
import pytest
import torch
from PIL import Image

from tests.host.helpers import (
    NODE_IDS,
    SEED,
    STEPS,
    PreviewClient,
    cached,
    chain,
    forget,
    latents,
    link,
    node,
    put_latent,
)

SAMPLERS = ("first_frame", "keyframes", "video")


def test_every_node_is_offered(server):
    offered = {id: info for id, info in server.client.object_info().items() if id.startswith("KandinskyVideo")}
    assert set(offered) == NODE_IDS
    assert {info["category"] for info in offered.values()} == {"Kandinsky Video"}


def test_a_seed_is_a_clip(server, run_graph):
    ends = [f"{id}.file" for id in SAMPLERS]
    first = run_graph(chain(*ends))
    forget(server.client)
    again = run_graph(chain(*ends))
    assert not cached(again), "or it is no second run"
    other = run_graph(chain(*ends, **{id: {"seed": SEED + 1} for id in SAMPLERS}))
    first, again, other = (latents(server, run) for run in (first, again, other))
    for end in ends:
        assert torch.equal(first[end], again[end])
        assert (first[end] - other[end]).abs().mean() > 0.05


def test_another_interpolation_seed_leaves_the_keyframes_alone(server, run_graph):
    ends = ("keyframes.file", "video.file")
    first = run_graph(chain(*ends))
    again = run_graph(chain(*ends, video={"seed": SEED + 1}))
    assert {"first_frame", "encoded", "keyframes"} <= cached(again)
    assert not {"video", "video.file"} & cached(again)
    before, after = (latents(server, run)["video.file"] for run in (first, again))
    assert torch.equal(before[:, :, ::4], after[:, :, ::4]), "the keyframes"
    assert not torch.equal(before, after)


@pytest.fixture(scope="module")
def watched(server):
    """A run with previews, where every step is reported; the server leaves out steps that are too quick otherwise."""
    forget(server.client)
    done = PreviewClient(server.client.address).run(chain("frames.file", "video.file"))
    assert done.status == "success", done.error
    return done


@pytest.mark.parametrize("stage", SAMPLERS)
def test_every_step_is_reported(watched, stage):
    assert watched.progress()[stage] == [(step, STEPS) for step in range(1, STEPS + 1)]
    states = [data["nodes"][stage] for kind, data in watched.events if kind == "progress_state" and stage in data["nodes"]]
    assert {state["max"] for state in states if state["value"]} == {STEPS}
    assert states[-1]["state"] == "finished"


def test_decoding_is_reported(watched):
    reported = watched.progress()["frames"]
    assert {most for _, most in reported} == {13}
    values = [value for value, _ in reported]
    assert values[0] == 5 and values[-1] == 13 and values == sorted(values), "chunks of 5, 5 and 3 frames"


@pytest.mark.parametrize("stage, size", zip(SAMPLERS, [(16, 16), (8, 8), (8, 8)]))
def test_every_step_has_a_preview(watched, stage, size):
    shown = pictures(watched)[stage]
    assert len(shown) == STEPS
    assert {picture.size for picture in shown} == {size}
    assert all(low < high for low, high in shown[-1].getextrema()), "a flat picture shows nothing"
    assert shown[0].tobytes() != shown[-1].tobytes()


def pictures(run):
    """Node id -> its previews. The server sends a preview right after the progress of the step it shows."""
    found, current = {}, None
    for kind, data in run.events:
        if kind == "progress":
            current = data["node"]
        elif kind == "preview" and int.from_bytes(data[:4], "big") == 1:
            found.setdefault(current, []).append(Image.open(io.BytesIO(data[8:])).convert("RGB"))
    return found


def long_decode(server):
    clip = torch.randn(1, 4, 60, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "clip": put_latent(server, "long", clip),
        "video": node("KandinskyVideoFromLatent", latent=link("clip"), kind="video"),
    }


@pytest.mark.parametrize("stage", [*SAMPLERS, "frames"])
def test_cancel(server, run_graph, stage):
    end = "frames.file" if stage == "frames" else f"{stage}.file"
    long, short = {} if stage == "frames" else {stage: {"steps": 400}}, {}
    graph = chain(end, more=long_decode(server) if stage == "frames" else None, **long)
    times = {}

    def cancel(kind, data):
        if kind == "execution_interrupted":
            times["stopped"] = time.monotonic()
            assert data["node_id"] == stage
        elif kind == "progress" and data["node"] == stage and "asked" not in times:
            assert data["value"] < data["max"]
            times["asked"] = time.monotonic()
            server.client.interrupt(data["prompt_id"])

    done = server.client.run(graph, cancel)
    assert done.status == "interrupted"
    assert times["stopped"] - times["asked"] < 2
    run_graph(chain(end, **short))


@pytest.mark.parametrize("jobs", [20])
def test_memory_stays_level(server, run_graph, jobs):
    settings = {"first_frame": {"steps": 1}, "keyframes": {"steps": 1, "frames": 2}, "video": {"steps": 1}}

    def run(seed):
        for id in SAMPLERS:
            settings[id]["seed"] = seed
        assert not cached(run_graph(chain("frames.file", "video.file", **settings))) & {*SAMPLERS, "frames"}

    for seed in range(5):
        run(100 + seed)
    before = resident(server)
    for seed in range(jobs):
        run(200 + seed)
    assert resident(server) < 1.05 * before


def resident(server):
    """Bytes of memory the server's processes hold."""
    process = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
