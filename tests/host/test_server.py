"""What a user of the real server sees: the nodes, a seed's clip, progress, previews, cancelling, level memory."""

import io

import psutil
import pytest
import torch
from PIL import Image

from tests.support.helpers import (
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
    run_here,
)

SAMPLERS = ("first_frame", "keyframes", "video")


def test_every_node_is_offered(server):
    offered = {id: info for id, info in server.client.object_info().items() if id.startswith("KandinskyVideo")}
    assert set(offered) == NODE_IDS
    assert {info["category"] for info in offered.values()} == {"Kandinsky Video", "Kandinsky Video/experiments"}


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
        assert (first[end] - other[end]).abs().mean() > 0.1


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
    """A run with previews: with them the server reports every step, without them it leaves out some that are quick."""
    forget(server.client)
    done = PreviewClient(server.client.address).run(chain("frames.file", "video.file"))
    assert done.status == "success", done.error
    return done


@pytest.mark.parametrize("stage", SAMPLERS)
def test_every_step_is_reported(watched, stage):
    steps = [(step, STEPS) for step in range(1, STEPS + 1)]
    assert watched.progress()[stage] == steps
    states = [data["nodes"].get(stage) for kind, data in watched.events if kind == "progress_state"]
    running = [(state["value"], state["max"]) for state in states if state and state["state"] == "running"]
    assert set(steps) <= set(running)


def test_decoding_is_reported(watched):
    reported = watched.progress()["frames"]
    assert reported[0] == (5, 13) and reported[-1] == (13, 13), "chunks of 5, 5 and 3 frames"


@pytest.mark.parametrize("stage", SAMPLERS)
def test_every_step_has_a_preview(watched, stage):
    shown = previews(watched)[stage]
    assert len(shown) == STEPS
    for picture in shown:
        assert all(low < high for low, high in picture.getextrema()), "a flat picture shows nothing"
    # Of a video, any frame may be on show, one that was given too, which stays as it is.
    assert stage == "video" or shown[0].tobytes() != shown[-1].tobytes()


def previews(run):
    """Node id -> its pictures. The server sends each right after the progress of the step it shows."""
    found, current = {}, None
    for kind, data in run.events:
        if kind == "progress":
            current = data["node"]
        elif kind == "preview":
            event, picture = int.from_bytes(data[:4], "big"), data[8:]
            assert event == 1
            found.setdefault(current, []).append(Image.open(io.BytesIO(picture)).convert("RGB"))
    return found


def work(server, stage, amount):
    """A graph in which `stage` has `amount` steps to do, or frames to decode."""
    if stage != "frames":
        return chain(f"{stage}.file", **{stage: {"steps": amount}})
    more = {
        "clip": put_latent(server, f"{amount}-frames", torch.randn(1, 4, amount, 8, 8)),
        "video": node("KandinskyVideoFromLatent", latent=link("clip"), kind="video"),
    }
    return chain("frames.file", more=more)


@pytest.mark.parametrize("stage, much", [("first_frame", 600), ("keyframes", 400), ("video", 400), ("frames", 90)])
def test_cancel(server, run_graph, stage, much):
    reported = []

    def cancel(kind, data):
        if kind == "execution_interrupted":
            assert data["node_id"] == stage
        elif kind == "progress" and data["node"] == stage:
            if not reported:
                server.client.interrupt(data["prompt_id"])
            reported.append(data["value"])

    assert server.client.run(work(server, stage, much), cancel).status == "interrupted"
    assert reported[-1] < much / 2
    assert stage not in cached(run_graph(work(server, stage, 2)))


@pytest.mark.parametrize("call", ["text", "encoding", "decoding"])
def test_cancel_reaches_calls_without_steps(pack_nodes, call):
    import comfy.model_management as management

    text_encoder, movq = (run_here(pack_nodes, chain(id))[id] for id in ("text_encoder", "movq"))
    calls = {
        "text": lambda: text_encoder.encode("a red fox", "projection_base"),
        "encoding": lambda: movq.encode(torch.zeros(1, 3, 64, 64)),
        "decoding": lambda: next(movq.decode_images(torch.zeros(1, 4, 8, 8))),
    }
    management.interrupt_current_processing(True)
    with torch.inference_mode(), pytest.raises(management.InterruptProcessingException):
        calls[call]()


@pytest.mark.thorough
def test_memory_stays_level(server, run_graph):
    def run(seed):
        settings = {"first_frame": {}, "keyframes": {"frames": 2}, "video": {}}
        done = run_graph(chain("frames.file", **{id: {"steps": 1, "seed": seed} | settings[id] for id in settings}))
        assert not cached(done) & {*SAMPLERS, "frames"}

    forget(server.client)
    for seed in range(10):  # until the allocator has found its size
        run(seed)
    before = resident(server)
    for seed in range(20):
        run(100 + seed)
    assert resident(server) < 1.05 * before  # measured: 1.0001


def resident(server):
    """Bytes of memory that the server's processes hold."""
    process = psutil.Process(server.process.pid)
    return sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])
