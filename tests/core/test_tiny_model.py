"""The tiny model in the pack: complete, small, and its clips show what was asked for.

`python -m evaluation.benchmark` measures the same over many more clips; the floors here are looser, as they are few.
"""

import os

import pytest
import torch

from evaluation import benchmark
from kv_core.files.checkpoints import open_checkpoint
from kv_core.networks.text_encoder import load_tokenizer
from kv_core.pictures.images import psnr
from tools.host import ROOT
from training import tiny, world

MODELS = ROOT / "models"
PARTS = {name: part for part, name in benchmark.FILES.items()}


@pytest.mark.parametrize("name", PARTS)
def test_every_part_is_there(name):
    checkpoint = open_checkpoint(MODELS / name, expect=PARTS[name])
    assert checkpoint.config.get("context_dim", tiny.CONTEXT_DIM) == tiny.CONTEXT_DIM
    assert (checkpoint.null_embedding is not None) == PARTS[name].endswith("_unet")


def test_small_and_nothing_else():
    files = [path for path in MODELS.rglob("*") if path.is_file() and "kv-tiny" in path.parts]
    assert sum(path.stat().st_size for path in files) < 16e6
    assert {path.name for path in files} == {
        "keyframes.safetensors",
        "interpolation.safetensors",
        "movq.safetensors",
        "video_movq.safetensors",
        "t5_projections.safetensors",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }


def test_tokenizer():
    tokenize, words = load_tokenizer(MODELS / benchmark.FILES["text_encoder"]), tiny.vocabulary()
    ids, mask, cut = tokenize("A red fox")
    assert ids.shape == (1, 128) and mask.sum() == 4 and not cut
    assert ids[0, :5].tolist() == [words["a"], words["red"], words[tiny.UNKNOWN], words[tiny.END], words[tiny.PAD]]
    long = tokenize("circle " * 200)
    assert long.cut and long.input_ids[0, -1] == words[tiny.END]


@torch.no_grad()
def test_latents_stay_in_the_samplers_range_and_come_back():
    judge = benchmark.Judge(MODELS)
    scenes = world.sample_scenes(16, torch.full((16,), 10.0), torch.Generator().manual_seed(1), unseen=True)
    pixels = world.draw(scenes, torch.tensor([3.0]))[:, 0]
    latents = judge.pipe.movq.encode(pixels)
    assert (latents.abs() > 1).float().mean() < 0.05 and latents.abs().max() < 1.5
    back = torch.cat([judge.pipe.movq.decode(latent[None]) for latent in latents.clamp(-1, 1)])
    assert psnr(back, pixels, 2).mean() > 30


@torch.no_grad()
def test_keyframes_follow_their_prompt():
    """Of one clip at the published settings; the tests below judge several of everything."""
    judge, scenes = benchmark.Judge(MODELS), benchmark.scene(0)
    texts = judge.pipe.encode_text(scenes.captions()[0])
    assert benchmark.compare(judge.pixels(judge.keyframes(texts, benchmark.picture(scenes), 0)), scenes)["all"]


@pytest.fixture(scope="module")
def results():
    counts = {
        "text_to_video": 16,
        "motion": 4,
        "image_to_video": 6,
        "interpolation": 4,
        "no_guidance": 10,
        "negative": 12,
    }
    tasks = [(name, str(index)) for name, count in counts.items() for index in range(count)]
    found = {name: {} for name in counts}
    for (name, index), row in zip(tasks, benchmark.run(MODELS, tasks, os.cpu_count() or 1)):
        found[name][index] = row
    return found


@pytest.mark.thorough
@pytest.mark.parametrize("what, least", [("colour", 0.85), ("shape", 0.75), ("direction", 0.7), ("all", 0.65)])
def test_clips_follow_the_prompt(results, what, least):
    assert benchmark.mean(results, "text_to_video", what) >= least


@pytest.mark.thorough
def test_speed_rises_with_the_motion_score(results):
    assert benchmark.mean(results, "motion", "in_order") >= 0.75


@pytest.mark.thorough
def test_a_clip_begins_with_its_picture(results):
    assert benchmark.mean(results, "image_to_video", "psnr") >= 20


@pytest.mark.thorough
def test_shape_and_colour_persist(results):
    assert benchmark.mean(results, "image_to_video", "persists") >= 0.8


@pytest.mark.thorough
def test_frames_between_lie_on_the_path(results):
    assert benchmark.mean(results, "interpolation", "error") < 1.5
    assert benchmark.mean(results, "interpolation", "psnr") > benchmark.mean(results, "interpolation", "psnr_faded") + 2


@pytest.mark.thorough
def test_without_guidance_the_prompt_says_little(results):
    assert benchmark.mean(results, "no_guidance", "colour") < benchmark.mean(results, "text_to_video", "colour") - 0.5


@pytest.mark.thorough
def test_a_negative_prompt_lowers_its_colour(results):
    assert benchmark.mean(results, "negative", "with") <= benchmark.mean(results, "negative", "without")


@pytest.mark.thorough
def test_the_temporal_decoder_flickers_less(results):
    assert benchmark.mean(results, "text_to_video", "flicker_temporal") < benchmark.mean(
        results, "text_to_video", "flicker_image"
    )


@pytest.mark.thorough
def test_table(results):
    table = benchmark.table(results)
    assert len(table.splitlines()) == 2 + 14 and "| text to video: colour matches (16 clips) |" in table
