"""Every part runs with most of its weights left in CPU memory, as on a card too small for it.

The meta device stands in for the card. The host moves there what fits its budget and streams the rest call by call; a
weight it can do neither with stays behind, and the operation that meets it there fails.
"""

import pytest
import torch

from kv_core.networks.attention import Text

BUDGETS = [0, 0.5]  # shares of the weights that fit


def on_card(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype, device="meta")


def numbers(*shape):
    return on_card(*shape, dtype=torch.long)


def text(model, branches):
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0], [1, 0, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])[:branches]
    return Text.unpadded(on_card(branches, 7, 32), mask)


def run_keyframes(model):
    return model.diffusion_model(
        on_card(3, 9, 4, 8, 8),
        on_card(3),
        texts=text(model, 3),
        mode="video",
        motion_score=numbers(3, 4),
        noise_augmentation=numbers(3, 4),
    )


def run_first_frame(model):
    return model.diffusion_model(on_card(2, 9, 1, 8, 8), on_card(2), texts=text(model, 2), mode="image")


def run_interpolation(model):
    return model.diffusion_model(
        on_card(2, 20, 3, 8, 8),
        on_card(2),
        texts=text(model, 2),
        temporal_mask=(True, False),
        skip_frames=numbers(2),
        perturbation_time=numbers(2),
    )


def run_text(model):
    # Without a mask: transformers looks at the mask's numbers, and there are none on this device.
    hidden = model.text_encoder(numbers(1, 128), None)
    return torch.cat([projection(hidden) for projection in model.projections.values()])


RUNS = {
    "first frame": (lambda parts: parts.keyframe_model("fp16"), run_first_frame),
    "keyframes": (lambda parts: parts.keyframe_model("fp16"), run_keyframes),
    "interpolation": (lambda parts: parts.interpolation_model("fp16"), run_interpolation),
    "image MoVQ": (
        lambda parts: parts.movq("image_movq", "fp16").patcher,
        lambda model: model.decode(model.encode(on_card(1, 3, 64, 64))),
    ),
    "video MoVQ": (
        lambda parts: parts.movq("video_movq", "fp16").patcher,
        lambda model: model.decode(on_card(4, 4, 8, 8)),
    ),
    "text encoder": (lambda parts: parts.text_patcher("fp16"), run_text),
}


@pytest.fixture
def attention(adapters, monkeypatch):
    """A kernel that does not ask the device for its free memory, which this one cannot tell."""
    from comfy.ldm.modules.attention import attention_pytorch

    for module in (adapters.weights, adapters.movq):
        monkeypatch.setattr(module, "optimized_attention", attention_pytorch)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", RUNS)
def test_weights_stream(parts, attention, name, budget):
    import comfy.model_management
    import comfy.model_patcher

    load, run = RUNS[name]
    model = load(parts).model
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("meta"), torch.device("cpu"))
    patcher.load(torch.device("meta"), max(1, int(budget * comfy.model_management.module_size(model))))
    left = sum(parameter.device.type == "cpu" for parameter in model.parameters())
    assert left > 0.2 * len(list(model.parameters())), "the budget leaves something to stream"
    with torch.inference_mode():
        assert run(model).device.type == "meta"


def test_a_weight_left_behind_would_be_noticed():
    with pytest.raises(RuntimeError, match="device"):
        torch.nn.Linear(2, 2)(on_card(1, 2))
    with pytest.raises(RuntimeError, match="device"):
        on_card(1, 2) * torch.nn.Parameter(torch.ones(1))
