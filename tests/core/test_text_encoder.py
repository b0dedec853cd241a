"""The text encoder and its projections against the published implementation's numbers."""

import pytest
import torch

from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TextModel, null_context
from tests.support.recipe import fill, golden

SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")


def build(dtype):
    _, case = golden("text")
    config = {key: case["t5_config"][key] for key in SIZES}
    model = TextModel(config, case["context_dim"], operations=TorchOperations, dtype=dtype)
    fill(model.text_encoder, "text_encoder")
    for name, projection in model.projections.items():
        fill(projection, name)
    return model


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("prefix, projection", [("", "base"), ("", "interpolation"), ("full.", "base")])
def test_context(prefix, projection, dtype, tolerance):
    tensors, _ = golden("text")
    ids = tensors[f"{prefix}input_ids"]
    mask = tensors.get("attention_mask") if not prefix else torch.ones_like(ids)
    with torch.no_grad():
        context, kept = build(dtype).encode(ids, mask, f"projection_{projection}", dtype)
    expected = tensors[f"{prefix}context_{projection}"]
    torch.testing.assert_close(context.float(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(kept, tensors[f"{prefix}context_mask"])


def test_null_context():
    context, mask = null_context(torch.arange(1.0, 4.0), torch.ones(1, 5, 3))
    assert context[0, 0].tolist() == [1, 2, 3] and context[0, 1:].abs().sum() == 0
    assert mask.tolist() == [[1, 0, 0, 0, 0]]
