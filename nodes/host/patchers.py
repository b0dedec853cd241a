"""Networks under the host's memory management, which moves, streams and evicts them."""

import comfy.model_management
import comfy.model_patcher
import torch


def make_patcher(module, load_device, offload_device, disable_dynamic=False):
    """Puts a module with its weights under the host's memory management."""
    # Which class CoreModelPatcher is depends on the host's flags, so it is read at the time of the call.
    patcher_class = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    if not comfy.model_management.is_device_cpu(offload_device):
        module.to(offload_device)
    return patcher_class(module, load_device=load_device, offload_device=offload_device)


def patch_network(network, compute, load_device, offload_device, disable_dynamic):
    """The patcher of a network that computes in the type `compute`."""
    network.eval()
    network.manual_cast_dtype = compute  # the host counts buffers for weights it casts while it streams them
    return make_patcher(network, load_device, offload_device, disable_dynamic)


class Part:
    """What sockets of model parts carry: a network under a patcher.

    By `.patcher`, `.is_dynamic()` and `.get_models()` the host keeps its account of memory.
    """

    def __init__(self, patcher):
        self.patcher = patcher

    @property
    def dtype(self):
        """The type it computes in."""
        return self.patcher.model.manual_cast_dtype

    def is_dynamic(self):
        return self.patcher.is_dynamic()

    def get_models(self):
        return [self.patcher]

    def load(self, memory_required):
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory_required)
        return self.patcher.model


def to_host(tensor):
    return tensor.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32)


def finite(tensor, part):
    """The tensor a part made; raises ValueError where it is not finite.

    These parts never compute in fp16, so the numbers of the file itself, or as they are stored, are to blame.
    """
    if not torch.isfinite(tensor).all():
        raise ValueError(
            f"{part} produced NaN or infinite values: load it with weight dtype fp32; if that does not help, its file "
            "is damaged, so download it again."
        )
    return tensor
