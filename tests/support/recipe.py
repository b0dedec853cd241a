"""The goldens' made-up weights (see goldens/README.md), and the files that hold their numbers."""

import copy
import json
import zlib
from functools import cache
from pathlib import Path

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file

GOLDENS = Path(__file__).parents[1] / "goldens"


def golden(name):
    """(tensors, case) of a golden file; a test may change both."""
    return copy.deepcopy(_golden(name))


@cache
def _golden(name):
    path = GOLDENS / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        case = json.loads(file.metadata()["case"])
    return load_file(path), case


def tensor(part, key, shape):
    """The weight `key` of `part`, float32."""
    rng = numpy.random.Generator(numpy.random.Philox(key=zlib.crc32(f"{part}/{key}".encode())))
    u = (2 * rng.random(int(numpy.prod(shape))) - 1).reshape(tuple(shape))
    last = key.rsplit(".", 1)[-1]
    if "merge" in last:
        values = 0.5 + 0.3 * u
    elif len(shape) == 1:
        values = 1 + 0.1 * u if last == "weight" else 0.1 * u
    else:
        values = u * numpy.sqrt(3 / numpy.prod(shape[1:])) * 0.8
    if key.startswith("out_layer.2."):
        values = values * 0.1
    return torch.from_numpy(values.astype(numpy.float32))


def fill(module, part):
    """Loads the recipe's weights into a module and returns it."""
    state = {key: tensor(part, key, value.shape).to(value.dtype) for key, value in module.state_dict().items()}
    module.load_state_dict(state)
    return module.eval()


def null_embedding(part, context_dim=32):
    return tensor(part, "null_embedding", (context_dim,))
