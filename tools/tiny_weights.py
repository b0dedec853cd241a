"""Writes a complete set of tiny random weights, so that every node and workflow runs without the real 40 GB.

    python tools/tiny_weights.py [--out FOLDER] [--force]

The pictures are noise. The files have the same tensors as the published ones, only smaller, and are the same bytes on
every run. Needs what the pack itself needs (torch, transformers, einops, safetensors) and takes a few seconds.
"""

import argparse
import json
import string
import sys
import zlib
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kv_core.conversion import appearing, write_safetensors  # noqa: E402
from kv_core.detection import METADATA_KEY  # noqa: E402
from kv_core.interpolation_unet import InterpolationUNet  # noqa: E402
from kv_core.keyframe_unet import KeyframeUNet  # noqa: E402
from kv_core.movq import MoVQ  # noqa: E402
from kv_core.operations import TorchOperations  # noqa: E402
from kv_core.text_encoder import BASE, INTERPOLATION, Projection, TextEncoder  # noqa: E402
from training.tiny import END, PAD, UNKNOWN, text_files  # noqa: E402

CONTEXT_DIM = 64
UNET = {
    "model_channels": 16, "init_channels": 16, "time_embed_dim": 32, "context_dim": CONTEXT_DIM, "groups": 8,
    "head_dim": 16, "dim_mult": (1, 2, 4), "num_blocks": (1, 1, 1), "add_cross_attention": (False, True, True),
    "add_self_attention": (False, True, True),
}  # fmt: skip
MOVQ = {"ch": 32, "ch_mult": (1, 1, 1, 1), "num_res_blocks": 1}  # four levels: a latent is an eighth of the picture
ENCODER = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_heads": 4, "num_layers": 2}

WORDS = """
a above after again against all along among an ancient and animal apple around art at autumn baby ball balloon beach
bear beautiful before behind below beside between bicycle big bird black blue boat book boy bread bridge bright brown
building butterfly by cabin cake camera candle car castle cat children city clear close cloud coast coffee cold colour
couple dance dark dawn day deep desert dog door down dragon dress drive drop drum dusk eagle early earth east eat
elephant empty evening eye face fall farm fast field film fire fish flag flower fly fog forest fountain fox fresh frog
from fruit garden girl glass glow gold golden grass gray green grow guitar hair hand happy harbour hat heart high hill
history horse hot house hundred ice in inside into island jump jungle kitchen lake lamp landscape large leaf leaves
light lighthouse lion little long man many market meadow moon morning mountain move music near new night north of old
on one open orange out over owl paint painting palace panda paper park party path people piano picture pink plane
planet play portrait purple queen rain rainbow red ride river road robot rock roof room rose run sail sand school sea
shadow ship shore silver sing sitting sky sleep slow small smile smoke snow soft space spring square stand star station
stone storm street style summer sun sunset swim table tall tea the through tiger time to tower town train travel tree
two under up valley view village violin volcano walk wall warm water waterfall wave west whale wheel white wide wild
wind window winter with wolf woman wood work world year yellow young
""".split()


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Writes tiny random weights for every part of Kandinsky Video 1.1.")
    parser.add_argument(
        "--out", type=Path, default=ROOT, help="folder whose models/ receives the files (default: the pack)"
    )
    parser.add_argument("--force", action="store_true", help="write the files even if the set is complete")
    options = parser.parse_args(arguments)
    models_folder = options.out / "models"
    files = weight_files(models_folder)
    texts = text_files(models_folder / "text_encoders/kv-tiny/flan-ul2", ENCODER, vocabulary())
    if not options.force and all(path.is_file() for path in [*files, *texts]):
        print(f"The tiny weights are in {models_folder} already.")
        return
    for path, (part, config, shapes) in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        metadata = {METADATA_KEY: json.dumps({"part": part, "config": config})}
        write_safetensors(path, random_weights(part, shapes), metadata)
    for path, text in texts.items():
        with appearing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    size = sum(path.stat().st_size for path in [*files, *texts])
    print(f"Wrote {len(files)} tiny weight files and a tokenizer, {size / 1e6:.1f} MB, to {models_folder}.")


def weight_files(folder):
    """{path: (part, config, {tensor: shape})} of every weight file; the config also goes into its metadata."""
    unets, vae, text = folder / "diffusion_models/kv-tiny", folder / "vae/kv-tiny", folder / "text_encoders/kv-tiny"
    encoder = ENCODER | {"vocab_size": len(vocabulary())}
    video = MOVQ | {"temporal": True}
    null = {"null_embedding": (CONTEXT_DIM,)}
    projections = {"d_model": ENCODER["d_model"], "context_dim": CONTEXT_DIM, "names": (BASE, INTERPOLATION)}
    projection = _shapes(Projection, {"d_model": ENCODER["d_model"], "context_dim": CONTEXT_DIM})
    return {
        unets / "keyframes.safetensors": ("keyframe_unet", UNET, _shapes(KeyframeUNet, UNET) | null),
        unets / "interpolation.safetensors": ("interpolation_unet", UNET, _shapes(InterpolationUNet, UNET) | null),
        vae / "movq.safetensors": ("image_movq", MOVQ, _shapes(MoVQ, MOVQ)),
        vae / "video_movq.safetensors": ("video_movq", video, _shapes(MoVQ, video)),
        text / "flan-ul2/model.safetensors": ("text_encoder", encoder, _shapes(TextEncoder, encoder)),
        text / "t5_projections.safetensors": (
            "projections",
            projections,
            {f"{name}.{tensor}": shape for name in projections["names"] for tensor, shape in projection.items()},
        ),
    }


def _shapes(model_class, config):
    model = model_class(**config, operations=TorchOperations, device="meta")
    return {tensor: tuple(value.shape) for tensor, value in model.state_dict().items()}


def random_weights(part, shapes):
    """Weights that keep a signal's size through the layers; each tensor has a seed of its own."""
    return {name: _random_tensor(part, name, shape) for name, shape in shapes.items()}


def _random_tensor(part, name, shape):
    generator = torch.Generator().manual_seed(zlib.crc32(f"{part}/{name}".encode()))
    noise = 2 * torch.rand(shape, generator=generator) - 1
    if "merge" in name.rsplit(".", 1)[-1]:
        return 0.5 + 0.3 * noise  # a share between two branches
    if name == "null_embedding":
        return noise * 3**0.5  # as large as the projected text
    if len(shape) == 1:
        return (1 if name.endswith("weight") else 0) + 0.1 * noise  # a norm's scale; a bias
    weight = noise * (3 / noise[0].numel()) ** 0.5
    # A small output keeps a hundred sampling steps from amplifying each other.
    return weight * 0.1 if name.startswith("out_layer.2.") else weight


def vocabulary():
    """{piece: id}: the special tokens, common words, and every character, so that any English text has its own ids."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = [PAD, END, UNKNOWN, *WORDS, *characters, *(f"##{character}" for character in characters)]
    return {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}


if __name__ == "__main__":
    main()
