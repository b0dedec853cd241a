"""The part of bench.py that runs in ComfyUI's Python: measures one stage and prints its numbers as one line of JSON.

Networks are kv_core's with random weights made on the device; one run is one call of the sampler's, all branches of the
guidance together, or one chunk of frames of a decoder.
"""

import json
import platform
import statistics
import sys
import time
import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from kv_core.networks import memory
from kv_core.networks.attention import Text
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TOKENS, TextModel
from kv_core.sampling.frames import KEYFRAMES

PROMPT_TOKENS = 20
FRAMES_A_CHUNK = 5  # that the video decoder takes, at most
NETWORK_SIZES = {
    "full": {"unet": {}, "movq": {}, "text": {}},
    "small": {
        "unet": {
            "model_channels": 96,
            "init_channels": 48,
            "time_embed_dim": 384,
            "context_dim": 256,
            "groups": 16,
            "head_dim": 32,
        },
        "movq": {"ch": 64},
        "text": {"d_model": 256, "d_kv": 64, "d_ff": 1024, "num_heads": 4, "num_layers": 4, "vocab_size": 32128},
    },
}


class PeakBytes(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations made and that are alive; `peak` is the most there were."""

    def __init__(self):
        super().__init__()
        self.alive, self.peak = {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        given = {id for id, _ in _storages(args)}
        for id, storage in _storages(out if isinstance(out, (tuple, list)) else (out,)):
            if id not in given:  # else a view, perhaps of a weight
                self._add(storage)
        return out

    def _add(self, storage):
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, storage._cdata, None)
            self.peak = max(self.peak, sum(self.alive.values()))


def _storages(values):
    storages = [value.untyped_storage() for value in values if isinstance(value, torch.Tensor)]
    return [(storage._cdata, storage) for storage in storages]


class Stages:
    """One method a stage: (the call to measure, the bytes that ComfyUI is told it needs)."""

    def __init__(self, size, width, height, device, dtype, compiled):
        self.sizes, self.height, self.width = NETWORK_SIZES[size], height // 8, width // 8
        self.factory = {"device": device, "dtype": dtype}
        self.compiled = compiled

    def first_frame(self):
        return self._keyframe_unet("image", 2, 1, 2 * self.height, 2 * self.width)

    def keyframes(self):
        return self._keyframe_unet("video", 3, KEYFRAMES, self.height, self.width)

    def _keyframe_unet(self, mode, branches, frames, height, width):
        unet = self._network(KeyframeUNet, self.sizes["unet"])
        x, number = self._noise(branches, 9, frames, height, width), torch.full((branches, 1), 10, **self._device())
        text = self._text(unet, branches)
        forward = self._maybe_compiled(unet)

        def run():
            forward(x, number[:, 0], text, mode=mode, motion_score=number, noise_augmentation=number)

        return run, self._unet_bytes(branches * frames, height, width)

    def interpolation(self):
        unet = self._network(InterpolationUNet, self.sizes["unet"])
        x, number = self._noise(2, 20, KEYFRAMES - 1, self.height, self.width), torch.ones(2, **self._device()).long()
        text = self._text(unet, 2)
        forward = self._maybe_compiled(unet)

        def run():
            forward(x, number, text, temporal_mask=(True, False), skip_frames=number, perturbation_time=number)

        return run, self._unet_bytes(2 * (KEYFRAMES - 1), self.height, self.width)

    def encode_image(self):
        movq, ch = self._movq()
        pixels = self._noise(1, 3, 8 * self.height, 8 * self.width)
        estimate = memory.movq_encode(8 * self.height, 8 * self.width, ch, self.factory["dtype"])
        return lambda: movq.encode(pixels), estimate

    def decode_image(self):
        return self._decode(1, temporal=False)

    def decode_video(self):
        return self._decode(FRAMES_A_CHUNK, temporal=True)

    def _decode(self, frames, temporal):
        movq, ch = self._movq(temporal)
        latents = self._noise(frames, 4, self.height, self.width)
        estimate = memory.movq_decode(frames, 8 * self.height, 8 * self.width, ch, self.factory["dtype"])
        return lambda: movq.decode(latents), estimate

    def text(self):
        config = self.sizes["text"]
        model = random_weights(TextModel(config, operations=TorchOperations, **self.factory))
        ids, mask = torch.ones(2, 1, TOKENS, **self._device()).long()
        sizes = model.text_encoder.encoder.config
        estimate = memory.text_encode(TOKENS, sizes.d_model, sizes.d_ff, cast=False)
        return lambda: model.encode(ids, mask, dtype=self.factory["dtype"]), estimate

    def _movq(self, temporal=False):
        movq = self._network(MoVQ, self.sizes["movq"] | {"temporal": temporal})
        return movq, movq.encoder.conv_in.out_channels

    def _network(self, kind, sizes):
        return random_weights(kind(**sizes, operations=TorchOperations, **self.factory))

    def _text(self, unet, branches):
        context = self._noise(branches, PROMPT_TOKENS + 1, unet.context_dim)
        mask = torch.zeros(context.shape[:2], dtype=torch.long)
        mask[0, :PROMPT_TOKENS], mask[1:, 0] = 1, 1
        return Text.unpadded(context, mask)

    def _maybe_compiled(self, network):
        return torch.compile(network, fullgraph=True) if self.compiled else network

    def _unet_bytes(self, rows, height, width):
        channels = self.sizes["unet"].get("model_channels", 384)
        return memory.unet(rows, height, width, channels, self.factory["dtype"])

    def _noise(self, *shape):
        return torch.randn(shape, **self.factory)

    def _device(self):
        return {"device": self.factory["device"]}


def random_weights(network):
    """Fills the weights on their device so that activations keep about their size."""
    for name, weight in network.named_parameters():
        if "merge" in name or weight.ndim < 2:
            weight.data.fill_(0.5 if "merge" in name else float(name.endswith("weight")))
        else:
            weight.data.uniform_(-1, 1).mul_((3 / weight[0].numel()) ** 0.5)
    return network.requires_grad_(False).eval()


def measure(stage, size, width, height, device, dtype, repeat, compile):
    """Every number of a stage as a dict; seconds, bytes in GB, arithmetic in 1e12."""
    device = pick_device(device)
    dtype = getattr(torch, dtype or ("float32" if device == "cpu" else "float16"))
    matmul = matmul_rate(device, dtype)
    run, estimate = getattr(Stages(size, width, height, device, dtype, compile), stage.replace("-", "_"))()
    [cold] = seconds(run, 1, device)
    times = seconds(run, repeat, device)
    with FlopCounterMode(display=False) as flops:
        run()
    peak, reserved = peak_memory(run, device)
    warm, work = statistics.median(times), flops.get_total_flops() / 1e12
    return {
        "stage": stage,
        "size": size,
        "width": width,
        "height": height,
        "compiled": compile,
        "dtype": str(dtype)[6:],
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "machine": platform.machine(),
        "torch": torch.__version__,
        "cold": cold,
        "warm": warm,
        "times": times,
        "tflop": work,
        "rate": work / warm,
        "matmul": matmul,
        "share": work / warm / matmul,
        "peak": peak / 1e9,
        "reserved": reserved and reserved / 1e9,
        "host": memory.peak() / 1e9,
        "estimate": estimate / peak,
    }


def pick_device(name):
    if name != "auto":
        return name
    return torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu"


def seconds(run, count, device):
    """How long each of `count` runs takes."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - start)
    return times


def matmul_rate(device, dtype, size=None):
    """What the machine reaches in large products of square matrices, in 1e12 operations a second."""
    size = size or (2048 if device == "cpu" else 8192)
    a, b = torch.randn(2, size, size, device=device).to(dtype)
    seconds(lambda: a @ b, 3, device)
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b, 7, device)) / 1e12


def peak_memory(run, device):
    """(Most bytes in use beyond weights and inputs, most bytes the allocator held in all or None)."""
    if device != "cuda":
        with PeakBytes() as bytes:
            run()
        return bytes.peak, None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before, torch.cuda.max_memory_reserved()


if __name__ == "__main__":
    with torch.inference_mode():
        print(json.dumps(measure(**json.loads(sys.argv[1]))))
