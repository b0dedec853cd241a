"""The forward passes that save time and memory: the same numbers as the straightforward ones, and that they do save."""

import pytest
import torch

from kv_core.networks import movq
from kv_core.networks.attention import CrossAttentionBlock, Text
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.movq import MoVQ
from kv_core.networks.operations import TorchOperations
from tests.support import plain, recipe
from tests.support.golden_networks import noise, prompts
from tests.support.recipe import fill, golden
from tools import measure

FACTORY = {"operations": TorchOperations, "dtype": torch.float64}
MOVQ_SIZES = {"ch", "ch_mult", "num_res_blocks", "temporal"}


def unpadded(context, mask):
    return Text.unpadded(context, mask)


def padded(context, mask):
    return (Text.padded(context, mask),)


def keyframes(read, mode="video"):
    unet = fill(KeyframeUNet(**golden("keyframe_unet")[1]["config"], **FACTORY), "keyframe_unet")
    x, number = noise(3, 9, 4 if mode == "video" else 1, 8, 8), torch.tensor([[3], [7], [11]])
    time, scores = torch.tensor([980, 500, 20]), {"motion_score": number, "noise_augmentation": number}
    return unet(x, time, read(*prompts(unet)), mode=mode, **scores)


def interpolation(read, acting):
    name = "interpolation_unet_default"
    unet = fill(InterpolationUNet(**golden(name)[1]["config"], **FACTORY), name)
    time, number = torch.tensor([999, 500, 99]), torch.tensor([3, 1, 2])
    return unet(
        noise(3, 20, 4, 8, 8),
        time,
        read(*prompts(unet)),
        temporal_mask=acting,
        skip_frames=number,
        perturbation_time=number,
    )


def decoding(read, part):
    config = {name: value for name, value in golden(part)[1]["config"].items() if name in MOVQ_SIZES}
    return fill(MoVQ(**config, **FACTORY), part).decode(noise(5, 4, 8, 4))


CALLS = {
    "keyframes": lambda read: keyframes(read),
    "first frames": lambda read: keyframes(read, "image"),
    "gaps that act and one that does not": lambda read: interpolation(read, (True, False, True)),
    "no gap acts": lambda read: interpolation(read, (False, False, False)),
    "image MoVQ": lambda read: decoding(read, "image_movq"),
    "video MoVQ": lambda read: decoding(read, "video_movq_default"),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_same_numbers(monkeypatch, name):
    call = CALLS[name]
    with torch.no_grad():
        fast = call(unpadded), call(padded)
    training = call(padded).detach()
    plain.use(monkeypatch)
    with torch.no_grad():
        expected = call(padded)
    for found in (*fast, training):
        torch.testing.assert_close(found, expected, atol=1e-10, rtol=0)


FRAMES_TEXTS = [0, 0, 0, 2, 1, 1, 1, 1]  # rows of `prompts` that the four frames of two branches have


@pytest.mark.parametrize("part", ["keyframe_unet", "interpolation_unet_default"])
def test_texts_that_change_over_the_frames(monkeypatch, part):
    two = torch.tensor([3, 7])
    if part == "keyframe_unet":
        unet, channels = KeyframeUNet(**golden(part)[1]["config"], **FACTORY), 9
        more = {"motion_score": two[:, None], "noise_augmentation": two[:, None]}
    else:
        unet, channels = InterpolationUNet(**golden(part)[1]["config"], **FACTORY), 20
        more = {"temporal_mask": (True, False), "skip_frames": two, "perturbation_time": two}
    unet, x, time = fill(unet, part), noise(2, channels, 4, 8, 8), torch.tensor([980, 20])
    with torch.no_grad():
        context, mask = (part[FRAMES_TEXTS] for part in prompts(unet))
        fast = unet(x, time, Text.unpadded(context, mask), **more)
        plain.use(monkeypatch)
        expected = unet(x, time, (Text.padded(context, mask),), **more)
    torch.testing.assert_close(fast, expected, atol=1e-10, rtol=0)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["keyframes", "gaps that act and one that does not", "video MoVQ"])
def test_torch_compile_breaks_no_graph(monkeypatch, name):
    def compiled(network, part):
        network, entry = recipe.fill(network, part), "decode" if isinstance(network, MoVQ) else "forward"
        setattr(network, entry, torch.compile(getattr(network, entry), fullgraph=True, backend="eager"))
        return network

    with torch.no_grad():
        expected = CALLS[name](unpadded)
        monkeypatch.setitem(globals(), "fill", compiled)
        torch.testing.assert_close(CALLS[name](unpadded), expected)


def test_one_token_asks_for_no_attention():
    asked = []

    class Operations(TorchOperations):
        @staticmethod
        def attention(q, k, v, heads, mask=None, options=None):
            asked.append((tuple(k.shape[:2]), mask))
            return TorchOperations.attention(q, k, v, heads, mask, options)

    unet = fill(KeyframeUNet(**golden("keyframe_unet")[1]["config"], operations=Operations), "keyframe_unet")
    context, mask = (part.float() for part in prompts(unet))
    with torch.no_grad():
        unet(torch.zeros(2, 9, 1, 8, 8), torch.zeros(2), Text.unpadded(context[:2], mask[:2]), mode="image")
    to_text = [(shape, masked) for shape, masked in asked if shape[1] == 5]
    blocks = sum(isinstance(module, CrossAttentionBlock) for module in unet.modules())
    assert len(to_text) == blocks + 1, "and the pooling's"
    assert all(shape[0] == 1 and mask is None for shape, mask in to_text)
    assert not any(shape[1] in (1, 6) for shape, _ in asked)


def test_scale_and_shift_are_made_once_a_branch():
    unet = fill(KeyframeUNet(**golden("keyframe_unet")[1]["config"], **FACTORY), "keyframe_unet")
    rows = []
    for name, layer in unet.named_modules():
        if name.endswith("context_mlp") and "temporal" not in name and ".3." not in name and ".4." not in name:
            layer.register_forward_hook(lambda layer, given, out: rows.append(len(given[0])))
    with torch.no_grad():
        text, number = unpadded(*prompts(unet)), torch.ones(3, 1)
        unet(noise(3, 9, 4, 8, 8), torch.zeros(3), text, motion_score=number, noise_augmentation=number)
    assert rows and max(rows) == 3, "not one for each of the twelve frames"


@pytest.mark.parametrize("height, halves", [(8, True), (7, False), (640, False)])
def test_a_chunk_is_convolved_in_halves_where_torch_is_slow(height, halves):
    convolution = fill(torch.nn.Conv3d(8, 8, 3, padding=1), "video_movq").float()
    x = noise(1, 8, 5, height, 6).float()
    given = []
    convolution.register_forward_hook(lambda layer, args, out: given.append(len(args[0])))
    with torch.no_grad():
        torch.testing.assert_close(movq._over_chunk(convolution, x), convolution(x), atol=1e-5, rtol=0)
    assert given[0] == (2 if halves else 1)


@pytest.mark.thorough
@pytest.mark.parametrize("stage", ["keyframes", "decode-video"])
def test_memory(monkeypatch, stage):
    """At 36 frames of 32x32 latents with 96 model channels, and a chunk of video of that size."""

    def peak():
        stages = measure.Stages("small", 256, 256, "cpu", torch.float32, False)
        return measure.peak_memory(getattr(stages, stage.replace("-", "_"))()[0], "cpu")[0]

    with torch.inference_mode():
        fast = peak()
        plain.use(monkeypatch)
        straight = peak()
    print(f"{stage}: {fast / straight:.2f} of the memory")
    assert fast <= 0.7 * straight
