"""ComfyUI's own nodes between the pack's loader and its stages: LoRA files, EasyCache, torch.compile."""

import re

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support.helpers import CHAIN, chain, latents, link, log_of, node, saved, unet
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
    """Writes a random LoRA of rank 2, and the tiny U-Net with it merged in; returns the name both have."""
    source = ROOT / "models/diffusion_models" / CHAIN[CHAIN[stage]["inputs"]["model"][0]]["inputs"]["unet_name"]
    generator = torch.Generator().manual_seed(0)
    unet, lora = load_file(source), {}
    for layer in LAYERS[stage]:
        weight = unet[f"{layer}.weight"]
        outs, ins, *kernel = weight.shape
        down = 0.3 * torch.randn(2, ins, *kernel, generator=generator)
        up = 0.3 * torch.randn(outs, 2, *(1 for _ in kernel), generator=generator)
        lora |= {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up}
        unet[f"{layer}.weight"] = weight + (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
    for folder, tensors in (("loras", lora), ("diffusion_models", unet)):
        path = server.work / "models" / folder / f"{stage}-lora.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata)
    return path.name


@pytest.mark.parametrize("stage", LAYERS)
def test_a_lora_file(server, run_graph, stage):
    name = write_lora(server, stage)

    def loader(strength):
        return node("LoraLoaderModelOnly", lora_name=name, strength_model=strength)

    more = (
        patched(stage, "on", loader(1.0))
        | patched(stage, "off", loader(0.0))
        | {
            "merged.unet": unet(name),
            "merged": node(CHAIN[stage]["class_type"], **CHAIN[stage]["inputs"] | {"model": link("merged.unet")}),
            **saved("merged"),
        }
    )
    graph = chain("on.file", "off.file", "merged.file", f"{stage}.file", more=more)
    log, done = log_of(server, lambda: run_graph(graph))
    assert "not loaded" not in log, "every key finds its layer"
    files = latents(server, done)
    plain, on, off, merged = (files[f"{id}.file"] for id in (stage, "on", "off", "merged"))
    assert (on - plain).abs().mean() > 0.02
    torch.testing.assert_close(on, merged, atol=1e-4, rtol=0)
    assert torch.equal(off, plain)


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


@pytest.mark.parametrize(
    "backend, stage",
    [
        pytest.param("eager", "first_frame", marks=pytest.mark.thorough),
        pytest.param("eager", "keyframes", marks=pytest.mark.slow),
        pytest.param("eager", "interpolation", marks=pytest.mark.slow),
        pytest.param("inductor", "first_frame", marks=pytest.mark.slow),
    ],
)
def test_torch_compile(adapters, stages, keyframe_model, interpolation_model, monkeypatch, backend, stage):
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_extras.nodes_torch_compile import TorchCompileModel
    from torch._dynamo.utils import counters

    # The attention of GPUs; the CPU's own asks the system for its free memory, which no compiler can look into.
    monkeypatch.setattr(adapters.weights, "optimized_attention", attention_pytorch)
    model = interpolation_model if stage == "interpolation" else keyframe_model
    sample = getattr(stages, stage)
    plain = sample(model, steps=2)
    torch._dynamo.reset()
    counters.clear()
    compiled = sample(TorchCompileModel.execute(model, backend)[0], steps=2)
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=0)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], "or it compiles piece by piece"
