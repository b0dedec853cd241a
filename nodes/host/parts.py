"""What the KV_TEXT_ENCODER, KV_MOVQ and KV_VIDEO_MOVQ sockets carry: networks the host can move, stream and evict.

Every one has `.patcher`, `.is_dynamic()` and `.get_models()`, by which the host keeps its account of memory.
"""

import logging
from pathlib import Path

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...kv_core.networks import memory
from ...kv_core.networks.movq import MoVQ as MoVQNetwork
from ...kv_core.networks.movq import decode_chunks
from ...kv_core.networks.text_encoder import TOKENS, TextModel, load_tokenizer
from . import files, tiles
from . import weights as storage
from .unets import make_patcher, operations


class Part:
    """A network under a patcher; `dtype` is the type it computes in."""

    def __init__(self, patcher, dtype):
        self.patcher = patcher
        self.dtype = dtype

    def is_dynamic(self):
        return self.patcher.is_dynamic()

    def get_models(self):
        return [self.patcher]

    def _load(self, memory_required):
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory_required)
        return self.patcher.model


def _to_host(tensor):
    return tensor.to(device=comfy.model_management.intermediate_device(), dtype=torch.float32)


class TextEncoder(Part):
    """Flan-UL2 with its projections. It computes in float32 whatever its weights are stored in, as published."""

    def __init__(self, patcher, tokenizer):
        super().__init__(patcher, torch.float32)
        self.tokenizer = tokenizer

    def encode(self, text, projection):
        """Text -> context `[1, n, d]` float32 and its mask int64 `[1, n]`; warns where the text is cut."""
        tokens = self.tokenizer(text)
        if tokens.cut:
            logging.warning(f"The prompt is longer than {TOKENS} tokens; the rest is not read: {text[:60]}...")
        device = self.patcher.load_device
        with comfy.model_management.cuda_device_context(device):
            model = self._load(self._memory_required())
            context, mask = model.encode(
                tokens.input_ids.to(device), tokens.attention_mask.to(device), projection=projection, dtype=self.dtype
            )
        return _to_host(context), mask.to(comfy.model_management.intermediate_device())

    def _memory_required(self):
        model = self.patcher.model
        sizes = model.text_encoder.encoder.config
        return memory.text_encode(TOKENS, sizes.d_model, sizes.d_ff, cast=model.stored != self.dtype)


class MoVQ(Part):
    """Either autoencoder. Latents `[frames, 4, h, w]`; pixels `[frames, 3, H, W]` about [-1, 1], float32."""

    def __init__(self, patcher, dtype, ch):
        super().__init__(patcher, dtype)
        self.ch = ch

    def encode(self, pixels):
        """One image's pixels `[1, 3, H, W]` -> its latent `[1, 4, H/8, W/8]`."""
        device = self.patcher.load_device
        with comfy.model_management.cuda_device_context(device):
            model = self._load(memory.movq_encode(*pixels.shape[2:], self.ch, self.dtype))
            return _to_host(model.encode(pixels.to(device, self.dtype)))

    def encode_each(self, pictures, count):
        """Yields the latent of every one of `count` pictures' pixels, while it shows progress."""
        progress = comfy.utils.ProgressBar(count)
        for pixels in pictures:
            comfy.model_management.throw_exception_if_processing_interrupted()
            yield self.encode(pixels)
            progress.update(1)

    def decode(self, latents, chunks, tile=0):
        """Yields the pixels of every chunk of frames, of the lengths in `chunks`, while it shows progress.

        tile: the sides of the tiles, in latent pixels, that a chunk is decoded in; 0: whole. Where memory runs out,
        smaller tiles follow, and a warning.
        """
        device = self.patcher.load_device
        progress = comfy.utils.ProgressBar(latents.shape[0])
        with comfy.model_management.cuda_device_context(device):
            sides = [8 * min(side, tile or side) for side in latents.shape[2:]]
            model = self._load(memory.movq_decode(max(chunks), *sides, self.ch, self.dtype))
            for chunk in latents.split(chunks):
                comfy.model_management.throw_exception_if_processing_interrupted()
                pixels, tile = self._decode_chunk(model, chunk.to(device, self.dtype), tile)
                yield pixels
                progress.update(len(chunk))

    def _decode_chunk(self, model, chunk, tile):
        # Returns the tile's sides too, with which there was room.
        while True:
            try:
                return tiles.decode(model, chunk, tile), tile
            except Exception as error:  # only the host knows which ones mean that memory ran out
                comfy.model_management.raise_non_oom(error)
                smaller = (tile or max(chunk.shape[2:])) // 2
                if smaller < tiles.LEAST:
                    raise
            # Beyond the exception, which holds what was computed so far.
            tile = smaller
            comfy.model_management.soft_empty_cache()
            logging.warning(f"Out of memory while decoding: going on in tiles of {8 * tile} pixels.")

    def decode_images(self, latents, tile=0):
        """Decodes frames one by one: in a batch they would not be independent."""
        return self.decode(latents, [1] * latents.shape[0], tile)

    def decode_video(self, latents, tile=0):
        """Decodes a clip in the published chunks, whose frames see each other."""
        return self.decode(latents, decode_chunks(latents.shape[0]), tile)


def _exact_attention(q, k, v, heads, mask=None, options=None):
    # Heads as wide as the autoencoder's are beyond the host's 8-bit kernels.
    return optimized_attention(q, k, v, heads, mask=mask, low_precision_attention=False)


def load_movq(path, part, weight_dtype="default"):
    """Loads "image_movq" or "video_movq"; raises ValueError for any other file."""
    patcher = movq_patcher(path, part, weight_dtype)
    return MoVQ(patcher, patcher.model.manual_cast_dtype, patcher.model.ch)


def movq_patcher(path, part, weight_dtype="default", disable_dynamic=False):
    """The patcher of a MoVQ; by default in the type the host picks for VAEs."""
    checkpoint = files.open_checkpoint(path, expect=part)
    device = comfy.model_management.vae_device()
    types = [torch.bfloat16, torch.float32]
    stored = storage.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.vae_dtype(device, types)
    compute = comfy.model_management.unet_manual_cast(stored, device, types) or stored
    layers = operations(stored, compute, device, _exact_attention)
    network = MoVQNetwork(**checkpoint.config, operations=layers, dtype=stored, device="meta")
    network.ch = checkpoint.config["ch"]
    storage.load(network, checkpoint.state_dict(), stored)
    patcher = _patch(network, compute, device, comfy.model_management.vae_offload_device(), disable_dynamic)
    patcher.cached_patcher_init = (movq_patcher, (path, part, weight_dtype))
    return patcher


def load_text_encoder(path, projections_path, weight_dtype="default"):
    """Loads Flan-UL2 from a folder or a file beside its tokenizer, and the projections file that goes with it."""
    try:
        tokenizer = load_tokenizer(path if Path(path).is_dir() else Path(path).parent)
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
    stored = storage.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.text_encoder_dtype(device)
    network = TextModel(
        encoder.config,
        sizes["context_dim"],
        sizes["names"],
        operations=_text_operations(stored, device),
        dtype=storage.layer_dtype(stored, torch.float32),
        device="meta",
    )
    network.stored = stored
    storage.load(network.text_encoder, encoder.state_dict(), stored)
    storage.load(network.projections, projections.state_dict(), stored)
    patcher = _patch(
        network, torch.float32, device, comfy.model_management.text_encoder_offload_device(), disable_dynamic
    )
    patcher.cached_patcher_init = (text_encoder_patcher, (path, projections_path, weight_dtype))
    return patcher


def _text_operations(stored, device):
    layers = operations(stored, torch.float32, device)

    class Embedding(layers.Embedding):
        # The position bias comes from such a layer, and what follows cannot add 8-bit numbers.
        def forward(self, input):
            return super().forward(input, out_dtype=torch.float32)

    layers.Embedding = Embedding
    return layers


def _patch(network, compute, load_device, offload_device, disable_dynamic):
    network.eval()
    network.manual_cast_dtype = compute  # the host counts buffers for weights it casts while it streams them
    return make_patcher(network, load_device, offload_device, disable_dynamic)
