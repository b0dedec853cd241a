"""What the published sizes need of a GPU: weights by their number, activations by the estimates that the host is given.

test_memory.py holds those estimates to what the networks hold when they run.
"""

import pytest
import torch

from kv_core.networks import memory
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TOKENS, TextModel
from tools.measure import PeakBytes

HALF = torch.float16
FACTORY = {"operations": TorchOperations, "dtype": HALF, "device": "meta"}
LATENT = 512 // 8


def weights(network, layer_bytes):
    """Bytes of a network whose linear layers and convolutions take `layer_bytes` a weight, and all else 16 bits."""
    kinds = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d)
    layers = sum(module.weight.numel() for module in network.modules() if isinstance(module, kinds))
    return layers * layer_bytes + (sum(weight.numel() for weight in network.parameters()) - layers) * 2


@pytest.fixture(scope="module")
def unets():
    return {"keyframes": KeyframeUNet(**FACTORY), "interpolation": InterpolationUNet(**FACTORY)}


# Latent rows of all branches: 12 keyframes three times, two first frames of twice the sides, 11 and 44 gaps twice.
@pytest.mark.parametrize(
    "unet, rows", [("keyframes", 36), ("keyframes", 8), ("interpolation", 22), ("interpolation", 88)]
)
def test_unets_at_512_pixels(unets, adapters, unet, rows):
    activations = memory.unet(rows, LATENT, LATENT, 384, HALF)
    assert weights(unets[unet], 1) + activations < 8e9, "int8 or fp8, all of it on the card"
    assert weights(unets[unet], 2) + activations < 12e9, "fp16, all of it on the card"


def test_decoding_at_512_pixels(adapters):
    needed = weights(MoVQ(temporal=True, **FACTORY), 2)
    assert needed + memory.movq_decode(5, 512, 512, 256, torch.bfloat16) < 8e9
    assert needed + memory.movq_decode(5, 256, 256, 256, torch.bfloat16) < 3e9, "tiles of 256 pixels"


@pytest.mark.parametrize("budget", [0, 1.5e9])
def test_flan_ul2_is_streamed_in_less_than_3_gb(adapters, budget):
    import comfy.model_patcher

    card = torch.device("meta")
    layers = adapters.text_encoder._text_operations(HALF, torch.device("cpu"))
    model = TextModel({}, operations=layers, dtype=HALF, device=card).requires_grad_(False)
    model.manual_cast_dtype = torch.float32
    patcher = comfy.model_patcher.ModelPatcher(model, card, torch.device("cpu"))
    patcher.load(card, max(1, int(budget)))
    loaded = patcher.loaded_size()
    assert loaded <= budget and patcher.model_size() > 17e9
    with PeakBytes() as bytes, torch.inference_mode():
        hidden = model.text_encoder(torch.ones(1, TOKENS, dtype=torch.long, device=card), None)
        model.projections["projection_base"](hidden)
    # On a card, what is streamed arrives in fp16 before it is cast, the next weight while this one is used.
    arriving = 2 * 2 * max(weight.numel() for weight in model.parameters())
    estimate = memory.text_encode(TOKENS, 4096, 16384)
    assert 1.02 * bytes.peak < estimate < 1.15 * bytes.peak
    assert loaded + estimate + arriving < 3e9
