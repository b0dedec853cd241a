"""Every part is recognised from the names and shapes of its tensors alone, and anything else gets one sentence."""

import json
import math
from dataclasses import asdict

import pytest

from kv_core.files.checkpoints import CheckpointError, detect
from kv_core.files.detection import MARKS, METADATA_KEY, SIZES_TENSOR, check_complete
from kv_core.networks.interpolation_unet import InterpolationSizes, InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeSizes, KeyframeUNet
from kv_core.networks.movq import MoVQ, MoVQSizes
from kv_core.networks.operations import TorchOperations
from kv_core.networks.text_encoder import TextEncoder, TextEncoderSizes
from tests.support.recipe import GOLDENS, golden

MANIFESTS = GOLDENS.parent / "manifests"
CLASSES = {
    "keyframe_unet": KeyframeUNet,
    "interpolation_unet": InterpolationUNet,
    "image_movq": MoVQ,
    "video_movq": MoVQ,
    "text_encoder": TextEncoder,
}
SIZE_CLASSES = {
    "keyframe_unet": KeyframeSizes,
    "interpolation_unet": InterpolationSizes,
    "image_movq": MoVQSizes,
    "video_movq": MoVQSizes,
    "text_encoder": TextEncoderSizes,
}
# Settings of the published configs that say how the models were trained, or are implied by `temporal`.
NOT_SIZES = {"double_z", "resolution", "attn_resolutions", "dropout", "temporal_attention_block"}
GOLDEN_PARTS = {
    "keyframe_unet": "keyframe_unet",
    "keyframe_unet_plain": "keyframe_unet",
    "interpolation_unet_default": "interpolation_unet",
    "interpolation_unet_plain": "interpolation_unet",
    "interpolation_unet_context": "interpolation_unet",
    "image_movq": "image_movq",
    "video_movq_default": "video_movq",
    "video_movq_flicker": "video_movq",
}
SMALL_UNET = {
    "model_channels": 64,
    "init_channels": 64,
    "time_embed_dim": 64,
    "context_dim": 32,
    "dim_mult": (1, 2),
    "num_blocks": (1, 1),
    "add_cross_attention": (False, True),
    "add_self_attention": (False, True),
}


def manifest(part):
    content = json.loads((MANIFESTS / f"{part}.json").read_text())
    return {name: tuple(shape) for name, shape in content["tensors"].items()}, content


def shapes_of(part, config):
    model = CLASSES[part](**config, operations=TorchOperations, device="meta")
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def full_config(part, config):
    """All keyword sizes of a part's class: its defaults under what a config file says."""
    sizes = asdict(SIZE_CLASSES[part]())
    stated = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items() if k not in NOT_SIZES}
    assert stated.keys() <= sizes.keys()
    return sizes | stated


def stating(config):
    return {METADATA_KEY: json.dumps({"config": config})}


def refusal(shapes, metadata=None):
    """The sentence a set of tensors is refused with."""
    with pytest.raises(CheckpointError) as error:
        check_complete(detect(shapes, metadata, "x.pt"), shapes, "x.pt")
    message = str(error.value)
    assert message.startswith("x.pt ") and message.endswith(".") and ". " not in message and "\n" not in message
    assert len(message) < 300
    assert not [name for name in shapes if name.count(".") > 1 and name in message]
    return message


@pytest.mark.parametrize("part", ["keyframe_unet", "interpolation_unet", "image_movq", "video_movq"])
def test_published_files(part):
    shapes, content = manifest(part)
    found = detect(shapes)
    assert found.part == part
    assert found.config == full_config(part, content["config"])
    built = shapes_of(part, found.config)
    assert built == shapes
    assert sum(math.prod(shape) for shape in built.values()) == content["parameters"]
    check_complete(found, shapes)


@pytest.mark.parametrize("name", GOLDEN_PARTS)
def test_variants(name):
    part, config = GOLDEN_PARTS[name], full_config(GOLDEN_PARTS[name], golden(name)[1]["config"])
    shapes = shapes_of(part, config)
    found = detect(shapes, stating(config))
    assert (found.part, found.config) == (part, config)
    check_complete(found, shapes)


@pytest.mark.parametrize("part", ["keyframe_unet", "interpolation_unet"])
def test_levels_may_differ(part):
    sizes = {
        "dim_mult": (1, 2, 3),
        "num_blocks": (3, 1, 2),
        "add_cross_attention": (True, False, True),
        "add_self_attention": (False, True, False),
        "expansion_ratio": 2,
        "compression_ratio": 1,
    }
    config = full_config(part, SMALL_UNET | sizes)
    assert detect(shapes_of(part, config)).config == config


def test_flan_ul2_and_other_text_encoder_sizes():
    small = golden("text")[1]["t5_config"]
    small = {size: small[size] for size in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")}
    for config in ({}, small, {"relative_attention_num_buckets": 16, "d_kv": 64, "num_layers": 2}):
        config = full_config("text_encoder", config)
        shapes = shapes_of("text_encoder", config)
        found = detect(shapes)
        assert (found.part, found.config) == ("text_encoder", config)
        check_complete(found, shapes)
    assert detect(shapes, stating({"relative_attention_max_distance": 64})).config != config


def test_only_the_encoder_of_a_whole_t5_is_taken():
    shapes = shapes_of("text_encoder", {"num_layers": 2})
    renamed = {name: shape for name, shape in shapes.items() if name != "shared.weight"}
    renamed |= {"encoder.embed_tokens.weight": shapes["shared.weight"], "lm_head.weight": shapes["shared.weight"]}
    renamed |= {f"decoder.{name}": shape for name, shape in shapes.items()}
    found = detect(renamed)
    check_complete(found, renamed)
    assert found.tensors["shared.weight"] == "encoder.embed_tokens.weight"
    assert found.tensors.keys() == shapes.keys()


def test_projections():
    layer = {"0.weight": (64, 24), "1.weight": (64,), "1.bias": (64,)}
    shapes = {f"projection_{name}.{k}": shape for name in ("interpolation", "base") for k, shape in layer.items()}
    found = detect(shapes)
    names = ("projection_base", "projection_interpolation")
    assert (found.part, found.config) == ("projections", {"d_model": 24, "context_dim": 64, "names": names})
    check_complete(found, shapes)
    assert "text projections" in refusal(shapes | {"projection_base.1.bias": (24,)})
    del shapes["projection_interpolation.1.bias"]
    assert "1 missing" in refusal(shapes)


@pytest.mark.parametrize("prefix", ["unet.", "model.diffusion_model."])
def test_prefixes_of_wrapped_files(prefix):
    shapes = shapes_of("keyframe_unet", SMALL_UNET)
    wrapped = {prefix + name: shape for name, shape in shapes.items()} | {"null_embedding": (1, 32)}
    found = detect(wrapped)
    check_complete(found, wrapped)
    assert found.tensors == {name: prefix + name for name in shapes}
    assert found.null_embedding == "null_embedding"


def test_missing_unknown_and_misshapen_tensors_are_counted():
    shapes, _ = manifest("keyframe_unet")
    assert "keyframe U-Net" in refusal(shapes | {"more": (1,)}) and "1 unknown" in refusal(shapes | {"more": (1,)})
    deep = [name for name in shapes if name.startswith("up_samples.2.resnet_attn_blocks.1.")]
    cut = {name: shape for name, shape in shapes.items() if name not in deep}
    assert f"1910 expected, {len(deep)} missing" in refusal(cut)
    assert "1 misshapen" in refusal(shapes | {"out_layer.0.bias": (7,)})
    assert "1 unknown" in refusal(manifest("image_movq")[0] | {"null_embedding": (4096,)})


@pytest.mark.parametrize("part", ["keyframe_unet", "interpolation_unet", "image_movq", "video_movq"])
def test_any_part_of_a_file_gets_one_sentence(part):
    shapes = list(manifest(part)[0].items())
    for kept in (1, 5, 20, len(shapes) // 2, len(shapes) - 1):
        refusal(dict(shapes[:kept]))
        refusal(dict(shapes[-kept:]))
    for step in (2, 3, 7):
        refusal(dict(shapes[::step]))
    flat = {name: shape[:1] for name, shape in shapes}
    assert "unknown shape" in refusal(flat)


def test_hostile_numbers_do_not_hang():
    shapes, _ = manifest("interpolation_unet")
    refusal(shapes | {"down_samples.999999999999.in_norm.weight": (1,)})
    refusal(shapes | {"in_layer.weight": (0, 0, 0, 0)})
    refusal({name: (0,) * len(shape) for name, shape in shapes.items()})


def test_sizes_no_model_can_have():
    narrow = {name: tuple(max(1, size // 64) for size in shape) for name, shape in manifest("image_movq")[0].items()}
    assert "no such model" in refusal(narrow)
    wide = {"down_samples.0.resnet_attn_blocks.0.0.resnet_blocks.0.projection.weight": (4096, 192, 1, 1)}
    assert "no such model" in refusal(manifest("keyframe_unet")[0] | wide)


FOREIGN = {
    "a LoRA": ["lora_unet_down_samples_0.lora_up.weight", "diffusion_model.in_layer.lora_down.weight"],
    "a Stable Diffusion checkpoint": ["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"],
    "another model's VAE": ["encoder.down.0.block.0.norm1.weight", "encoder.conv_in.weight"],
    "a CLIP text encoder": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "a diffusers model": ["down_blocks.0.resnets.0.conv1.weight"],
    "a Kandinsky 5 checkpoint": ["visual_transformer_blocks.0.cross_attention.key_norm.weight"],
    "a UMT5 encoder": [f"encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight" for i in (0, 1)],
    "an older T5 encoder": ["encoder.block.0.layer.1.DenseReluDense.wi.weight"],
    "not recognised": ["model.layers.0.weight"],
}


@pytest.mark.parametrize("what", FOREIGN)
def test_foreign_files(what):
    message = refusal({name: (4, 4) for name in FOREIGN[what]})
    assert what in message and "Kandinsky Video 1.1" in message


def test_lora_made_for_our_unet_is_no_unet():
    shapes, _ = manifest("keyframe_unet")
    assert "a LoRA" in refusal(shapes | {"feature_pooling.attention.to_query.lora_A.weight": (4, 4096)})


def test_kandinsky_3_unet():
    shapes, _ = manifest("keyframe_unet")
    image_only = {name: shape for name, shape in shapes.items() if "temporal" not in name and "image_in" not in name}
    assert "Kandinsky 3's image U-Net" in refusal(image_only)


@pytest.mark.parametrize("word", ["compress", "decompress", "post_up", "conv_in", "conv_out"])
def test_temporal_compression(word):
    shapes, _ = manifest("interpolation_unet")
    message = refusal(shapes | {f"down_samples.0.temporal_{word}.weight": (1,)})
    assert "temporal compression" in message


def test_t5_xxl_is_not_taken_for_flan_ul2():
    config = {"d_ff": 10240, "num_layers": 24, "num_heads": 64, "d_kv": 64}
    assert "T5-XXL" in refusal(shapes_of("text_encoder", config))


def test_sizes_only_metadata_can_tell():
    config = full_config("keyframe_unet", golden("keyframe_unet")[1]["config"])
    shapes = shapes_of("keyframe_unet", config)
    assert "head_dim 64 does not divide" in refusal(shapes)
    assert "groups 32 does not divide" in refusal(shapes, stating({"head_dim": 8}))
    assert detect(shapes, stating({"head_dim": 8, "groups": 4})).config == config
    for broken in ("head_dim", '{"config": 3}', '{"config": {"head_dim": "8"}}', '{"config": {"head_dim": 0}}'):
        assert "metadata" in refusal(shapes, {METADATA_KEY: broken})


def test_sizes_that_an_empty_tensor_tells():
    prefix = "model.diffusion_model."
    shapes = {prefix + name: shape for name, shape in shapes_of("keyframe_unet", SMALL_UNET).items()}
    shapes |= dict.fromkeys(MARKS, (0,))
    found = detect(shapes | {prefix + SIZES_TENSOR: (0, 16, 8), prefix + "null_embedding": (32,)})
    assert (found.config["head_dim"], found.config["groups"]) == (16, 8)
    assert found.null_embedding == prefix + "null_embedding"
    check_complete(found, shapes)
    metadata = {METADATA_KEY: json.dumps({"config": {"groups": 4}})}
    assert detect(shapes | {prefix + SIZES_TENSOR: (0, 16, 8)}, metadata).config["groups"] == 4, "metadata comes first"
    for shape in ((16, 8), (1, 16, 8), (0, 16, 0)):
        with pytest.raises(CheckpointError, match="expected .0, head_dim, groups."):
            detect(shapes | {prefix + SIZES_TENSOR: shape})
