"""ComfyUI's Train LoRA walks through conditionings, and trains these U-Nets."""

import pytest
import torch

INPUTS = {
    "batch_size": 1,
    "steps": 2,
    "grad_accumulation_steps": 1,
    "learning_rate": 0.001,
    "rank": 1,
    "optimizer": "AdamW",
    "loss_function": "MSE",
    "seed": 0,
    "training_dtype": "none",
    "lora_dtype": "fp32",
    "quantized_backward": False,
    "algorithm": "LoRA",
    "gradient_checkpointing": False,
    "checkpoint_depth": 1,
    "offloading": False,
    "existing_lora": "[None]",
    "bucket_mode": False,
    "bypass_mode": False,
}


@pytest.mark.thorough
def test_a_lora_is_trained_on_keyframes(clip, adapters):
    from comfy_extras.nodes_train import TrainLoraNode

    positive = clip.results["positive"]
    latent = clip.node("ToLatent", samples=clip.results["keyframes"])
    model = clip.results["keyframe_unet"]
    trained = TrainLoraNode.execute([model], [latent], [positive], **{name: [value] for name, value in INPUTS.items()})
    lora = trained.args[0]
    assert lora and all(torch.isfinite(weight).all() for weight in lora.values())
    ups = [weight for name, weight in lora.items() if "lora_up" in name]
    assert ups and any(weight.abs().max() > 0 for weight in ups), "they start at zero"
