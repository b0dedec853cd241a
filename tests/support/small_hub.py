"""A Hugging Face Hub on this machine with small weights in the layouts of the published repositories."""

import io
import json
import re

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from kv_core.files.published import FLAN_UL2, KANDINSKY, PUBLISHED
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.operations import TorchOperations
from tests.support.hub_server import HubServer
from tests.support.recipe import fill
from tests.support.small_files import UNET
from tools import host
from tools.download import weights
from tools.download.places import PLACES

TINY = host.ROOT / "models"
OPTIONS = {"dry_run": False, "dtype": None, "keep_original": False, "yes": True}


def saved(content):
    """The bytes of a .pt file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def unet(model_class):
    model = fill(model_class(**UNET, operations=TorchOperations), model_class.__name__)
    return saved({"unet": model.half().state_dict(), "null_embedding": torch.linspace(-1, 1, 32)})


def projections(width):
    shapes = {"0.weight": (width, width), "1.weight": (width,), "1.bias": (width,)}
    names = ("projection_base", "projection_interpolation")
    return saved({name: {key: torch.full(shape, 0.5) for key, shape in shapes.items()} for name in names})


@pytest.fixture(scope="session")
def kandinsky():
    movqs = {
        f"{name}.pt": saved(load_file(TINY / f"vae/kv-tiny/{name}.safetensors")) for name in ("movq", "video_movq")
    }
    unets = {"t2v.pt": unet(KeyframeUNet), "interpolation.pt": unet(InterpolationUNet)}
    return {"README.md": b"a page", **unets, **movqs, "t5_projections.pt": projections(64)}


@pytest.fixture(scope="session")
def flan_ul2():
    """A whole T5 as its makers publish it: encoder and decoder in files of one index, in bfloat16."""
    folder = TINY / "text_encoders/kv-tiny/flan-ul2"
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(tensors)
    parts = [
        {name: tensors[name] for name in names[::2]},
        {name: tensors[name] for name in names[1::2]} | {"decoder.block.0.weight": torch.zeros(9)},
        {"decoder.block.1.weight": torch.zeros(9), "lm_head.weight": torch.zeros(9)},
    ]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        files[name := f"pytorch_model-0000{number}-of-00003.bin"] = saved(part)
        weight_map |= dict.fromkeys(part, name)
    return {**files, "pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode()}


@pytest.fixture(name="server")
def hub_server(kandinsky, flan_ul2, monkeypatch):
    """A hub that huggingface_hub takes for the real one."""
    with HubServer() as running:
        running.repositories = {KANDINSKY: dict(kandinsky), FLAN_UL2: dict(flan_ul2)}
        point_to(running.address, monkeypatch)
        yield running


def point_to(address, monkeypatch):
    constants = huggingface_hub.constants
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def models(tmp_path):
    return tmp_path / "ComfyUI/models"


def get(models, *only, **changes):
    return weights.guarded({**OPTIONS, "models": str(models), "only": only or None, **changes})


def refusal(models, *only, **changes):
    """The one sentence with which it stops."""
    with pytest.raises(host.HostError) as error:
        get(models, *only, **changes)
    message = str(error.value)
    assert re.fullmatch(r"\S[^\n]+\.", message) and ". " not in message, message
    return message


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def target(models, key):
    return models / PLACES[PUBLISHED[key].part].folder / PUBLISHED[key].name
