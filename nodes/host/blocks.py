"""What is switched off in a U-Net, carried by a clone of its patcher; the model itself is never changed."""

from ...kv_core.networks.unet import ALL_ON, Off
from .unets import OFF, VideoModel


def levels_with_attention(stage, model):
    """{"self_attention": numbers of levels, "cross_attention": the same}; raises ValueError for another model."""
    if not isinstance(model.model, VideoModel):
        raise ValueError(
            f"{stage} needs a U-Net of Kandinsky Video, but got another model ({type(model.model).__name__}): connect "
            "Load U-Net."
        )
    levels = model.model.diffusion_model.down_samples
    return {
        "self_attention": [level.number for level in levels if level.self_attention_block],
        "cross_attention": [level.number for level in levels if "1" in level.resnet_attn_blocks[0]],
    }


def switch_off(model, off):
    """A clone of the model that leaves out what it left out before, and `off` too."""
    clone = model.clone()
    options = clone.model_options["transformer_options"]
    before = options.get(OFF, ALL_ON)
    options[OFF] = Off(
        before.temporal or off.temporal,
        before.pooling or off.pooling,
        tuple(sorted({*before.self_attention, *off.self_attention})),
        tuple(sorted({*before.cross_attention, *off.cross_attention})),
    )
    return clone
