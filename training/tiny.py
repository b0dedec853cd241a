"""The tiny Kandinsky Video: sizes of its five parts, its words and tokenizer, and layers that begin at random."""

import json

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

from kv_core.networks.operations import TorchOperations

from .world import BACKGROUNDS, COLOURS, DIRECTIONS, SHAPES

CONTEXT_DIM = 64
# A normalised group's size wavers with the noise in it, the more the fewer numbers it has, and with it the noise that
# is predicted. At 8x8 latents that hides faint signals, so here all channels are one group.
KEYFRAME_UNET = {
    "model_channels": 16,
    "init_channels": 48,
    "time_embed_dim": 112,
    "context_dim": CONTEXT_DIM,
    "groups": 1,
    "head_dim": 16,
    "expansion_ratio": 2,
    "dim_mult": (3, 4, 6),
    "num_blocks": (1, 1, 1),
    "add_cross_attention": (False, True, True),
    "add_self_attention": (False, True, True),
}
# Skips leave a level after its down-sampling, so the outermost width must hold four times the predicted channels.
INTERPOLATION_UNET = KEYFRAME_UNET | {
    "model_channels": 64,
    "time_embed_dim": 80,
    "groups": 8,
    "dim_mult": (1, 1),
    "num_blocks": (1, 1),
    "add_cross_attention": (False, True),
    "add_self_attention": (False, True),
}
MOVQ = {"ch": 32, "ch_mult": (1, 1, 1, 2), "num_res_blocks": 1}  # four levels: a latent is an eighth of the picture
ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2}

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1 and 2, as the T5's
GRAMMAR = ("a", "an", "and", "on", "the", "moving", "standing", "background", "plain", "shape")


def vocabulary():
    """{word: id} of everything the world's captions can say."""
    words = [PAD, END, UNKNOWN, *GRAMMAR, *COLOURS, *SHAPES, *DIRECTIONS, *BACKGROUNDS]
    return {word: number for number, word in enumerate(dict.fromkeys(words))}


def tokenizer():
    """Splits text into lower-case words and appends the end token."""
    tokens = Tokenizer(models.WordLevel(vocabulary(), unk_token=UNKNOWN))
    tokens.normalizer = normalizers.Lowercase()
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    tokens.add_special_tokens([PAD, END, UNKNOWN])
    return tokens


def encoder_config():
    return ENCODER | {"vocab_size": len(vocabulary())}


def text_files(folder):
    """{path: text} of what a Hugging Face folder of the encoder holds beside its weights."""
    special = {"pad_token": PAD, "eos_token": END, "unk_token": UNKNOWN}
    config = encoder_config() | {
        "architectures": ["T5EncoderModel"],
        "model_type": "t5",
        "feed_forward_proj": "gated-silu",
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    contents = {
        "config.json": config,
        "tokenizer.json": json.loads(tokenizer().to_str()),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 128, **special},
        "special_tokens_map.json": special,
    }
    return {folder / name: json.dumps(content, indent=1, sort_keys=True) + "\n" for name, content in contents.items()}


class TrainableOperations(TorchOperations):
    """kv_core's layers with torch's own random beginnings, which inference has no use for."""

    Linear, Conv2d, Conv3d, ConvTranspose2d = nn.Linear, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d
    GroupNorm, LayerNorm, RMSNorm, Embedding = nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.Embedding


def trainable(module, merge=0.5):
    """Makes every weight trainable; the one-number merges, which no layer initialises, begin at `merge`."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(True)
        if "merge" in name.rsplit(".", 1)[-1]:
            nn.init.constant_(parameter, merge)
    return module
