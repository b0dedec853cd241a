"""What the KV_TEXT_ENCODER socket carries, and how it is loaded."""

import logging

import comfy.model_management
import torch

from ...kv_core.networks import memory
from ...kv_core.networks.text_encoder import BASE, INTERPOLATION, TOKENS, TextModel, load_tokenizer
from . import files, progress, weights
from .patchers import Part, finite, patch_network, to_host
from .prompts import Prompt, conditioning

PROJECTIONS = {"base": BASE, "interpolation": INTERPOLATION}


class TextEncoder(Part):
    """Flan-UL2 with its projections. It computes in float32 whatever its weights are stored in, as published."""

    def __init__(self, patcher, tokenizer):
        super().__init__(patcher)
        self.tokenizer = tokenizer

    def encode(self, text, projection):
        """Text -> context `[1, n, d]` float32 and its mask int64 `[1, n]`; warns where the text is cut."""
        known = self.patcher.model.projections
        if projection not in known:
            raise ValueError(
                f"The projections file has no {projection}, only {' and '.join(known)}: choose another file."
            )
        tokens = self.tokenizer(text)
        if tokens.cut:
            logging.warning(f"The prompt is longer than {TOKENS} tokens; the rest is not read: {text[:60]}...")
        device = self.patcher.load_device
        with comfy.model_management.cuda_device_context(device):
            model = self.load(self._memory_required())
            context, mask = model.encode(
                tokens.input_ids.to(device), tokens.attention_mask.to(device), projection=projection, dtype=self.dtype
            )
        return to_host(context), mask.to(comfy.model_management.intermediate_device())

    def _memory_required(self):
        model = self.patcher.model
        sizes = model.text_encoder.encoder.config
        return memory.text_encode(TOKENS, sizes.d_model, sizes.d_ff, cast=model.stored != self.dtype)


def encode_prompts(text_encoder, prompts, projection):
    """The CONDITIONING of [(frame, text)], each from its frame on, by one of PROJECTIONS."""
    with progress.measured("Encode Text"):
        texts = [(frame, text_encoder.encode(text, PROJECTIONS[projection])) for frame, text in prompts]
    for _, (context, _) in texts:
        finite(context, "The text encoder")
    return conditioning(Prompt(tuple(text_encoder.tokenizer.words(prompts[0][1])), tuple(texts)))


def load_text_encoder(path, projections_path, weight_dtype="default"):
    """Loads Flan-UL2 from a folder or a file beside its tokenizer, and the projections file that goes with it."""
    try:
        tokenizer = load_tokenizer(path)
    except FileNotFoundError:
        files.open_checkpoint(path, expect="text_encoder")  # says so first where the file is no encoder
        raise
    return TextEncoder(text_encoder_patcher(path, projections_path, weight_dtype), tokenizer)


def text_encoder_patcher(path, projections_path, weight_dtype="default", disable_dynamic=False):
    """The patcher of the encoder with its projections; by default in the type the host picks for text encoders."""
    encoder = files.open_checkpoint(path, expect="text_encoder")
    projections = files.open_checkpoint(projections_path, expect="projections")
    sizes = projections.config
    if sizes["d_model"] != encoder.config["d_model"]:
        raise ValueError(
            f"The projections take text of width {sizes['d_model']}, but this encoder gives "
            f"{encoder.config['d_model']}: choose files that belong together."
        )
    device = comfy.model_management.text_encoder_device()
    stored = weights.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.text_encoder_dtype(device)
    network = TextModel(
        encoder.config,
        sizes["context_dim"],
        sizes["names"],
        operations=_text_operations(stored, device),
        dtype=weights.layer_dtype(stored, torch.float32),
        device="meta",
    )
    network.stored = stored
    weights.load(network.text_encoder, encoder.tensors, stored)
    weights.load(network.projections, projections.tensors, stored)
    patcher = patch_network(
        network, torch.float32, device, comfy.model_management.text_encoder_offload_device(), disable_dynamic
    )
    patcher.cached_patcher_init = (text_encoder_patcher, (path, projections_path, weight_dtype))
    return patcher


def _text_operations(stored, device):
    layers = weights.operations(stored, torch.float32, device)

    class Embedding(layers.Embedding):
        # The position bias comes from such a layer, and what follows cannot add 8-bit numbers.
        def forward(self, input):
            return super().forward(input, out_dtype=torch.float32)

    layers.Embedding = Embedding
    return layers
