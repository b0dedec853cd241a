"""Small models in the layouts of the published files, and what tests of files share."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from kv_core.files.checkpoints import CheckpointError
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import Projection, TextEncoder
from tests.support.recipe import fill
from training import tiny

# Small, but with the published head_dim and groups, which a .pt file has no way to state.
UNET = {
    "model_channels": 64,
    "init_channels": 64,
    "time_embed_dim": 64,
    "context_dim": 32,
    "dim_mult": (1,),
    "num_blocks": (1,),
    "add_cross_attention": (True,),
    "add_self_attention": (True,),
}
MOVQ = {"ch": 32, "ch_mult": (1, 1), "num_res_blocks": 1}
ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 48, "num_heads": 2, "num_layers": 2, "vocab_size": 100}
FILE_NAMES = {
    "keyframe_unet": "t2v.pt",
    "interpolation_unet": "interpolation.pt",
    "image_movq": "movq.pt",
    "video_movq": "video_movq.pt",
    "projections": "t5_projections.pt",
    "text_encoder": "flan-ul2",
}


def model(part):
    build = {
        "keyframe_unet": lambda **o: KeyframeUNet(**UNET, **o),
        "interpolation_unet": lambda **o: InterpolationUNet(**UNET, **o),
        "image_movq": lambda **o: MoVQ(**MOVQ, **o),
        "video_movq": lambda **o: MoVQ(**MOVQ, temporal=True, flicker_augmentation=True, **o),
        "text_encoder": lambda **o: TextEncoder(**ENCODER, **o),
        "projections": lambda **o: torch.nn.ModuleDict(
            {name: Projection(64, 32, **o) for name in ("projection_base", "projection_interpolation")}
        ),
    }[part]
    return fill(build(operations=TorchOperations), part)


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """Small models in the layouts of the published files."""
    folder = tmp_path_factory.mktemp("published")
    for part in ("keyframe_unet", "interpolation_unet"):
        content = {"unet": model(part).state_dict(), "null_embedding": torch.linspace(-1, 1, 32)[None, None]}
        torch.save(content, folder / FILE_NAMES[part])
    for part in ("image_movq", "video_movq"):
        torch.save(model(part).state_dict(), folder / FILE_NAMES[part])
    projections = model("projections")
    torch.save({name: layer.state_dict() for name, layer in projections.items()}, folder / FILE_NAMES["projections"])
    write_shards(folder / "flan-ul2", model("text_encoder").state_dict())
    for path, text in tiny.text_files(Path()).items():
        (folder / "flan-ul2" / path.name).write_text(text)
    return folder


def write_shards(folder, tensors):
    folder.mkdir()
    names = sorted(tensors)
    halves = [names[: len(names) // 2], names[len(names) // 2 :]]
    files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves):
        save_file({name: tensors[name].contiguous() for name in half}, folder / file)
    weight_map = {name: file for file, half in zip(files, halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def refusal(action, *args, **kwargs):
    """The one sentence an action is refused with."""
    with pytest.raises(CheckpointError) as error:
        action(*args, **kwargs)
    message = str(error.value)
    assert message.endswith(".") and ". " not in message and "\n" not in message
    assert len(message.replace(str(Path(args[0]).parent), "")) < 300
    return message


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())
