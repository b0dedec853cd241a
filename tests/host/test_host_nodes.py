"""ComfyUI's own nodes between the pack's loader and its stages: LoRA files, EasyCache, torch.compile."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kv_core.diffusion import SeededNoise
from tests.host.helpers import CHAIN, chain, latents, link, node, saved
from tools.host import ROOT

# Linear layers and convolutions of each U-Net, among them some that only it has.
LAYERS = {
    "keyframes": [
        "in_layer",
        "down_samples.1.self_attention_block.attention.to_query",
        "down_samples.1.resnet_attn_blocks.0.3.temporal_resnet_blocks.1.2",
        "feature_pooling.attention.output_layer",
    ],
    "video": [
        "in_layer",
        "down_samples.1.temporal_attention_block.attention.to_value",
        "down_samples.0.resnet_attn_blocks.0.2.resnet_blocks.1.temporal_projection_new.temporal_projection",
        "feature_pooling.attention.output_layer",
    ],
}


def patched(stage, name, patch, **changes):
    """Nodes that run a stage with `changes` and its U-Net behind the node `patch`, and save the latent."""
    inputs = CHAIN[stage]["inputs"]
    nodes = {
        f"{name}.model": {**patch, "inputs": {**patch["inputs"], "model": inputs["model"]}},
        name: node(CHAIN[stage]["class_type"], **inputs | {"model": link(f"{name}.model")} | changes),
    }
    return nodes | saved(name)


def write_lora(server, stage):
    """Writes a random LoRA of rank 2 into the server's folder for them; returns its name."""
    unet = ROOT / "models/diffusion_models" / CHAIN[CHAIN[stage]["inputs"]["model"][0]]["inputs"]["unet_name"]
    path = server.work / f"models/loras/{stage}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    with safe_open(unet, "pt") as file:
        for layer in LAYERS[stage]:
            outs, ins, *kernel = file.get_slice(f"{layer}.weight").get_shape()
            down, up = (2, ins, *kernel), (outs, 2, *(1 for _ in kernel))
            for matrix, shape in (("A", down), ("B", up)):
                values = 0.3 * torch.randn(shape, generator=generator)
                tensors[f"diffusion_model.{layer}.lora_{matrix}.weight"] = values
    save_file(tensors, path)
    return path.name


def log_of(server, action):
    """What the server's log says about an action, and what the action returns."""
    start = server.log.stat().st_size
    done = action()
    with server.log.open(encoding="utf-8") as log:
        log.seek(start)
        return log.read(), done


@pytest.mark.parametrize("stage", LAYERS)
def test_a_lora_file(server, run_graph, stage):
    def loader(strength):
        return node("LoraLoaderModelOnly", lora_name=write_lora(server, stage), strength_model=strength)

    more = patched(stage, "on", loader(1.0)) | patched(stage, "off", loader(0.0))
    graph = chain("on.file", "off.file", f"{stage}.file", more=more)
    log, done = log_of(server, lambda: run_graph(graph))
    assert "not loaded" not in log, "every key finds its layer"
    files = latents(server, done)
    assert (files["on.file"] - files[f"{stage}.file"]).abs().mean() > 0.05
    assert torch.equal(files["off.file"], files[f"{stage}.file"])


@pytest.mark.parametrize("stage", ["first_frame", "keyframes", "video"])
def test_easycache(server, run_graph, stage):
    def cache(threshold):
        return node("EasyCache", reuse_threshold=threshold, start_percent=0.0, end_percent=1.0, verbose=False)

    more = patched(stage, "never", cache(0.0), steps=10) | patched(stage, "often", cache(3.0), steps=10)
    graph = chain("never.file", "often.file", f"{stage}.file", more=more, **{stage: {"steps": 10}})
    log, done = log_of(server, lambda: run_graph(graph))
    skipped = {int(count) for count in re.findall(r"EasyCache - skipped (\d+)/10 steps", log)}
    assert min(skipped) == 0 and max(skipped) > 2
    files = latents(server, done)
    assert torch.equal(files["never.file"], files[f"{stage}.file"])
    assert files["often.file"].isfinite().all()
    assert not torch.equal(files["often.file"], files[f"{stage}.file"])
