"""The types that weights are kept in, and how a network gets its layers and its weights."""

import dataclasses

import comfy.model_management
import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor

WEIGHT_DTYPES = {
    "default": None,
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}
EIGHT_BIT = tuple(name for name, dtype in WEIGHT_DTYPES.items() if dtype and dtype.itemsize == 1)

_LAYERS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d)


def attention(q, k, v, heads, mask=None, options=None):
    """kv_core's attention call by the host's chosen kernel; `options` are the host's transformer_options."""
    # The host's 8-bit kernels do not reliably honour a mask.
    return optimized_attention(
        q, k, v, heads, mask=mask, low_precision_attention=mask is None, transformer_options=options or {}
    )


def operations(weight_dtype, compute_dtype, device, attention=attention):
    """The host's layers for these types, with the attention call kv_core looks for among them."""
    picked = comfy.ops.pick_operations(weight_dtype, compute_dtype, load_device=device)
    if weight_dtype == torch.int8:
        picked = int8_layers(picked)
    return type("KandinskyOperations", (picked,), {"attention": staticmethod(attention)})


def layer_dtype(stored, compute):
    """The type to make layers in: layers cannot be made in int8, their weights become it."""
    return compute if stored == torch.int8 else stored


def load(network, tensors, stored):
    """Gives a network that was made on the meta device its weights, kept in the type `stored`.

    What the file holds in that type stays mapped from it, without a copy in memory. Types of 8 bits are for the weights
    of linear layers and convolutions; norms, biases and embeddings are next to nothing and stay as in the file.
    """
    layers = {f"{name}.weight" for name, module in network.named_modules() if isinstance(module, _LAYERS)}

    def kept(name, tensor):
        if stored.itemsize == 1 and name not in layers:
            return tensor
        return to_int8(tensor) if stored == torch.int8 else tensor.to(stored)

    network.load_state_dict({name: kept(name, tensor) for name, tensor in tensors.items()}, assign=True)
    network.requires_grad_(False)
    comfy.model_management.archive_model_dtypes(network)


class Int8Layer:
    """Mixed into the host's layers for weights in int8: what its patches and moves between devices need."""

    def convert_weight(self, weight, inplace=False, **_):
        return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight

    def set_weight(self, weight, inplace_update=False, seed=None, return_weight=False, **_):
        weight = to_int8(weight)
        if return_weight:
            return weight
        self.weight = torch.nn.Parameter(weight, requires_grad=False)

    def _apply(self, fn, recurse=True):
        return comfy.ops._quantized_apply(self, fn, recurse)


def int8_layers(operations):
    """The host's layers `operations`, ready for weights in int8."""
    names = [kind.__name__ for kind in _LAYERS]
    return type("Int8Operations", (operations,), {
        name: type(name, (Int8Layer, getattr(operations, name)), {}) for name in names
    })  # fmt: skip


def to_int8(weight):
    """A weight `[out, ...]` in the host's own int8 format, with one scale for every row `[...]`.

    The host's layers turn it into the type they compute in whenever they use it.
    """
    rows = QuantizedTensor.from_float(weight.flatten(1), "TensorWiseINT8Layout", per_channel=True)
    scale = rows.params.scale.view(-1, *[1] * (weight.ndim - 1))
    params = dataclasses.replace(rows.params, scale=scale, orig_shape=tuple(weight.shape))
    return QuantizedTensor(rows._qdata.view(weight.shape), "TensorWiseINT8Layout", params)
