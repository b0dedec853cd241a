"""Networks with the goldens' made-up weights, and inputs for them."""

import torch

from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TextModel, null_context
from tests.support.recipe import fill, golden

MOVQ_SIZES = {
    "ch",
    "ch_mult",
    "num_res_blocks",
    "z_channels",
    "in_channels",
    "out_ch",
    "temporal",
    "flicker_augmentation",
}
T5_SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")


def movq(case, part, dtype):
    config = {key: value for key, value in case["config"].items() if key in MOVQ_SIZES}
    return fill(MoVQ(**config, operations=TorchOperations, dtype=dtype), part)


def text_model(dtype):
    _, case = golden("text")
    config = {key: case["t5_config"][key] for key in T5_SIZES}
    model = TextModel(config, case["context_dim"], operations=TorchOperations, dtype=dtype)
    fill(model.text_encoder, "text_encoder")
    for name, projection in model.projections.items():
        fill(projection, name)
    return model


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prompts(unet):
    """A prompt of five tokens, its null context, and a prompt whose tokens have gaps."""
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0], [1, 0, 1, 1, 0, 0]])
    context = noise(3, 6, unet.context_dim) * mask[..., None]
    context[1:2] = null_context(noise(unet.context_dim, seed=1), context[1:2])[0]
    return context, mask
