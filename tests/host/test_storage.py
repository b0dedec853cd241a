"""How weights get from a file into a network, and what they become there."""

from pathlib import Path

import pytest
import torch

from tools.host import ROOT


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads Linux's list of mapped files")
@pytest.mark.parametrize("dtype, mapped", [("fp16", True), ("fp32", False)])
def test_weights_of_the_files_type_stay_in_the_file(adapters, dtype, mapped):
    file = ROOT / "models/diffusion_models/kv-tiny/keyframes.safetensors"
    network = adapters.unets.load_unet(file, dtype).model.diffusion_model
    ranges = [
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line
    ]
    within = [any(int(a, 16) <= weight.data_ptr() < int(b, 16) for a, b in ranges) for weight in network.parameters()]
    assert all(within) if mapped else not any(within)


@pytest.mark.parametrize("shape", [(6, 40), (6, 5, 3, 3), (6, 5, 3, 1, 1)])
def test_int8_rounds_every_row_to_its_own_scale(adapters, shape):
    sizes = torch.logspace(-3, 1, 6).view(-1, *[1] * (len(shape) - 1))
    weight = sizes * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    small = adapters.weights.to_int8(weight)
    largest = weight.flatten(1).abs().amax(1)
    error = (small.dequantize() - weight).flatten(1).abs().amax(1)
    assert small.nbytes == weight.numel() and torch.all(error <= largest / 127 / 2 * 1.001)


@pytest.mark.parametrize("dtype", ["fp8_e4m3fn", "fp8_e5m2", "int8"])
def test_only_layers_become_small(parts, adapters, dtype):
    wide = parts.keyframe_model("fp32").model_size()
    model = parts.keyframe_model(dtype)
    others = [name for name, weight in model.model.named_parameters() if weight.ndim < 2]
    assert others and all(model.model.get_parameter(name).dtype == torch.float32 for name in others)
    assert wide / 4 < model.model_size() < wide / 3
