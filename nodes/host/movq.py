"""What the KV_MOVQ and KV_VIDEO_MOVQ sockets carry, and how it is loaded."""

import logging

import comfy.model_management
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...kv_core.networks import memory
from ...kv_core.networks.movq import MoVQ as MoVQNetwork
from ...kv_core.networks.movq import decode_chunks
from . import files, tiles, weights
from .patchers import Part, patch_network, to_host


class MoVQ(Part):
    """Either autoencoder. Latents `[frames, 4, h, w]`; pixels `[frames, 3, H, W]` about [-1, 1], float32."""

    def encode(self, pixels):
        """One image's pixels `[1, 3, H, W]` -> its latent `[1, 4, H/8, W/8]`."""
        device = self.patcher.load_device
        with comfy.model_management.cuda_device_context(device):
            model = self.load(memory.movq_encode(*pixels.shape[2:], self.patcher.model.ch, self.dtype))
            return to_host(model.encode(pixels.to(device, self.dtype)))

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
            sides = [8 * side for side in tiles.largest(latents.shape[2:], tile)]
            model = self.load(memory.movq_decode(max(chunks), *sides, self.patcher.model.ch, self.dtype))
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
                most = max(chunk.shape[2:])
                smaller = min(tile or most, most) // 2
                if smaller < max(tiles.LEAST, most // 2):  # statistics are taken at half the size, whatever the tile
                    raise
            # Beyond the exception, which holds what was computed so far.
            tile = smaller
            comfy.model_management.soft_empty_cache()
            logging.warning(f"Out of memory while decoding: continuing in tiles of {8 * tile} pixels.")

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
    return MoVQ(movq_patcher(path, part, weight_dtype))


def movq_patcher(path, part, weight_dtype="default", disable_dynamic=False):
    """The patcher of a MoVQ; by default in the type the host picks for VAEs."""
    checkpoint = files.open_checkpoint(path, expect=part)
    device = comfy.model_management.vae_device()
    types = [torch.bfloat16, torch.float32]
    stored = weights.WEIGHT_DTYPES[weight_dtype] or comfy.model_management.vae_dtype(device, types)
    compute = comfy.model_management.unet_manual_cast(stored, device, types) or stored
    layers = weights.operations(stored, compute, device, _exact_attention)
    network = MoVQNetwork(**checkpoint.config, operations=layers, dtype=stored, device="meta")
    network.ch = checkpoint.config["ch"]
    weights.load(network, checkpoint.tensors, stored)
    patcher = patch_network(network, compute, device, comfy.model_management.vae_offload_device(), disable_dynamic)
    patcher.cached_patcher_init = (movq_patcher, (path, part, weight_dtype))
    return patcher
