"""What is seen while a clip is made: moving previews in true colours, time left, and what every stage took."""

import asyncio
import io
import json
import re
import threading
from itertools import pairwise

import aiohttp
import pytest
import torch
from einops import rearrange
from PIL import Image

from evaluation.latent_rgb import encoded, load, toy_pictures
from kv_core.pictures import images, latent_rgb
from tests.support.helpers import chain, forget, latents, log_of, run_here
from tools.host import ROOT

MOVQ = ROOT / "models/vae/kv-tiny/movq.safetensors"
BY_HAND = latent_rgb.PUBLISHED
STAGES = ("Sample First Frame", "Sample Keyframes", "Interpolate Frames")
VIDEO_STAGES = ("Encode Image", "Sample Keyframes", "Interpolate Frames")
SETTINGS = {"keyframes": {"frames": 12, "steps": 100, "motion": "extreme"}, "video": {"steps": 60}}
PROMPT = "a red circle moving right on a black background"


@pytest.fixture(scope="module")
def toy_world():
    """Latents and pixels of pictures that the factors were not fitted to."""
    return encoded(load(MOVQ), toy_pictures(60, seed=1))


def test_the_factors_are_the_best_there_are(toy_world):
    """What the command prints is what the pack holds; on fresh pictures nothing linear does much better."""
    latents, pixels = toy_world
    shown = latent_rgb.psnr(latent_rgb.to_rgb(latents, *latent_rgb.TINY), latent_rgb.means(pixels))
    factors, bias = latent_rgb.fit(latents, pixels)
    best = latent_rgb.psnr(latent_rgb.to_rgb(latents, factors.tolist(), bias.tolist()), latent_rgb.means(pixels))
    assert best - 0.3 < shown
    assert shown > 22  # measured: 22.6, and 12.7 with the factors by hand
    assert shown > 9 + latent_rgb.psnr(latent_rgb.to_rgb(latents, *BY_HAND), latent_rgb.means(pixels))


def test_a_fit_finds_the_map_that_made_the_pictures():
    generator = torch.Generator().manual_seed(0)
    factors, bias = torch.randn(4, 3, generator=generator), torch.randn(3, generator=generator)
    latents = torch.randn(5, 4, 6, 7, generator=generator)
    colours = latent_rgb.to_rgb(latents, factors.tolist(), bias.tolist())
    found = latent_rgb.fit(latents, colours.repeat_interleave(8, -1).repeat_interleave(8, -2))
    torch.testing.assert_close(found[0].float(), factors, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1].float(), bias, atol=1e-5, rtol=0)


async def watch(client, graph, method):
    """Runs a graph as the editor does; returns [(node id, picture)] of the previews it was sent."""
    shown = []
    url = f"{client.address}/ws?clientId={client.id}"
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as connection:
        await connection.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        await connection.receive()
        body = {"prompt": graph, "client_id": client.id, "extra_data": {"preview_method": method}}
        prompt = json.loads(client.request("/prompt", body))["prompt_id"]
        async for message in connection:
            if message.type is aiohttp.WSMsgType.BINARY and int.from_bytes(message.data[:4], "big") == 4:
                end = 8 + int.from_bytes(message.data[4:8], "big")
                picture = Image.open(io.BytesIO(message.data[end:])).convert("RGB")
                shown.append((json.loads(message.data[8:end])["node_id"], picture))
            elif message.type is aiohttp.WSMsgType.TEXT:
                event = json.loads(message.data)
                if event["type"] == "executing" and event["data"] == {"node": None, "prompt_id": prompt}:
                    break
    assert client.get(f"/history/{prompt}")[prompt]["status"]["status_str"] == "success"
    return shown


@pytest.fixture(scope="module")
def watched(server):
    """A run with previews, and the latents that the same graph gives without any."""
    graph = chain("video.file", "keyframes.file", positive={"text": PROMPT}, first_frame={"steps": 20}, **SETTINGS)
    forget(server.client)
    shown = asyncio.run(watch(server.client, graph, "latent2rgb"))
    with_previews = latents(server, server.client.run(graph))
    forget(server.client)
    without = latents(server, server.client.run(graph))
    assert with_previews.keys() == without.keys()
    assert all(torch.equal(with_previews[id], without[id]) for id in without), "looking on changes nothing"
    return shown, {id.removesuffix(".file"): samples for id, samples in without.items()}


@pytest.mark.thorough
@pytest.mark.parametrize("stage", SETTINGS)
def test_previews_move(watched, stage):
    shown, clips = watched
    pictures = [picture for id, picture in shown if id == stage]
    assert len(pictures) > SETTINGS[stage]["steps"], "also between steps"
    frames = latent_rgb.to_rgb(rearrange(clips[stage], "1 c f h w -> f c h w"), *latent_rgb.TINY)
    seen = [nearest(picture, frames) for picture in pictures[len(pictures) // 2 :]]
    clear = [index for index, decibels in seen if decibels > 25]
    assert len(clear) > len(seen) / 2 and len(set(clear)) >= 3, seen
    half = len(frames) // 2
    ways = [(after - before + half) % len(frames) - half for before, after in pairwise(clear)]
    # Neighbours may be taken for each other, and a busy machine may skip half a clip.
    back = [way for way in ways if way < -len(frames) // 12]
    assert sum(way > 0 for way in ways) >= 5 and len(back) <= len(ways) / 10, "in the order of the clip"


def nearest(picture, frames):
    """Which frame a preview shows, and by how many dB it resembles it."""
    small = picture.resize((frames.shape[-1], frames.shape[-2]), Image.Resampling.BOX)
    pixels = images.to_pixels(small)
    values = [latent_rgb.psnr(frame, pixels[0]) for frame in frames]
    return max(enumerate(values), key=lambda value: value[1])


def test_no_previews_unless_they_are_wanted(server):
    forget(server.client)
    assert asyncio.run(watch(server.client, chain("keyframes.file"), "none")) == []


def test_no_thread_is_left(pack_nodes):
    run_here(pack_nodes, chain("keyframes"))
    assert "_play" not in " ".join(thread.name for thread in threading.enumerate())


def test_the_log_tells_progress_time_and_memory(server):
    forget(server.client)
    log, done = log_of(server, lambda: server.client.run(chain("frames.file", keyframes={"steps": 30})))
    assert done.status == "success"
    for stage in (*STAGES, "Encode Image", "Decode Image", "Decode Video"):
        ((seconds, gigabytes),) = re.findall(rf"{stage}: ([\d.]+) s, at most ([\d.]+) GB in the process", log)
        assert 0 <= float(seconds) < 60 and 0.3 < float(gigabytes) < 30
    # A bar: what is done, the time it took, and the time that is left.
    assert re.search(r"Sample Keyframes: +\d+%.*\b(?!30)\d+/30 \[\d+:\d+<\d+:\d+", log)
    assert re.search(r"Decode Video: +100%.*13/13 \[", log)


def test_on_cuda_the_peak_is_the_stages_own(pack, monkeypatch, caplog):
    """The counter is set back as a stage begins, so that it says nothing of an earlier, larger one."""
    import comfy.model_management

    peak = {"bytes": 9e9}
    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cuda:0"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.update(bytes=1e9))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak["bytes"])
    with caplog.at_level("INFO"), pack.nodes.host.progress.measured("Stage"):
        peak["bytes"] += 1.5e9
    assert re.search(r"Stage: \d\.\d s, at most 2\.50 GB on cuda:0", caplog.text)


def test_a_stage_that_fails_leaves_no_line(pack, caplog):
    with caplog.at_level("INFO"), pytest.raises(ZeroDivisionError), pack.nodes.host.progress.measured("Stage"):
        raise ZeroDivisionError
    assert "Stage" not in caplog.text


@pytest.mark.parametrize("width, map", [(384, latent_rgb.PUBLISHED), (16, latent_rgb.TINY)])
def test_each_model_has_its_own_colours(width, map):
    assert latent_rgb.factors(width) == map
