"""The download against a hub on this machine: what it makes of a repository, and what it says before."""

import builtins
import io
import json
import re
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from kv_core.files.checkpoints import encoder_shards, open_checkpoint
from kv_core.files.published import FLAN_UL2, KANDINSKY, PUBLISHED
from tests.support.small_hub import TINY, files_in, get, refusal, target
from tools.download import hub, weights

# What it makes


def test_every_part_goes_where_its_loader_looks(server, models, kandinsky, capsys):
    assert get(models) == 0
    for key, entry in PUBLISHED.items():
        checkpoint = open_checkpoint(target(models, key), expect=entry.part)
        assert checkpoint.metadata, "converted"
    projections = torch.load(io.BytesIO(kandinsky["t5_projections.pt"]), weights_only=True)
    converted = load_file(target(models, "projections"))
    assert torch.equal(converted["projection_base.0.weight"], projections["projection_base"]["0.weight"])
    assert converted["projection_base.0.weight"].dtype == torch.float32, "as published"
    assert open_checkpoint(target(models, "keyframes")).null_embedding is not None
    assert not (models / weights.DOWNLOADS).exists()
    assert all(path.endswith((".safetensors", ".json")) for path in files_in(models))
    out = capsys.readouterr().out
    assert all(f"{target(models, key)} is ready" in out for key in PUBLISHED)

    before = len(server.downloads())
    assert get(models) == 0
    assert capsys.readouterr().out.count("already there") == len(PUBLISHED)
    assert len(server.downloads()) == before


def test_of_a_whole_t5_only_the_encoder_is_downloaded(server, models):
    get(models, "text", dtype="float16")
    assert not {"pytorch_model-00003-of-00003.bin", "README.md"} & set(server.downloads())
    tensors = open_checkpoint(target(models, "text")).tensors
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    expected = load_file(TINY / "text_encoders/kv-tiny/flan-ul2/model.safetensors")
    assert all(torch.equal(tensors[name], expected[name].bfloat16().half()) for name in expected)


def test_a_folder_without_the_decoders_files_can_be_read(flan_ul2, tmp_path):
    for name in (name for name in flan_ul2 if "00003-of" not in name):
        (tmp_path / name).write_bytes(flan_ul2[name])
    assert open_checkpoint(tmp_path).part == "text_encoder"
    index = json.loads(flan_ul2["pytorch_model.bin.index.json"])
    index["weight_map"]["shared.weight"] = "../../outside.bin"
    assert "outside.bin" in encoder_shards(index) and not any("/" in name for name in encoder_shards(index))


def test_8_bits_are_for_what_is_loaded_in_8_bits(server, models):
    get(models, "movq", "projections", dtype="float8_e4m3fn")
    assert {tensor.dtype for tensor in load_file(target(models, "movq")).values()} == {torch.float16}  # its own
    assert load_file(target(models, "projections"))["projection_base.0.weight"].dtype == torch.float8_e4m3fn


def test_kept_originals_are_used_again(server, models, kandinsky, capsys):
    get(models, "projections", keep_original=True)
    kept = models / weights.DOWNLOADS / "t5_projections.pt"
    assert kept.read_bytes() == kandinsky["t5_projections.pt"]
    assert "of downloaded files, which the loaders do not need" in capsys.readouterr().out
    target(models, "projections").unlink()
    get(models, "projections", dtype="bfloat16")
    assert server.downloads() == ["t5_projections.pt"] and not kept.exists()


# What it says before


def test_a_dry_run_says_everything_and_writes_nothing(server, models, capsys):
    target(models, "movq").parent.mkdir(parents=True)
    shutil.copy(TINY / "vae/kv-tiny/movq.safetensors", target(models, "movq"))
    before = files_in(models.parent)
    assert get(models, dry_run=True, yes=False) == 0
    out = capsys.readouterr().out
    assert files_in(models.parent) == before and server.downloads() == ["pytorch_model.bin.index.json"]
    assert f"movq: the image MoVQ, already there: {target(models, 'movq')}\n" in out
    for key, entry in PUBLISHED.items():
        assert (f"becomes {target(models, key)}, at most " in out) == (key != "movq")
        if entry.file and key != "movq":
            size = len(server.repositories[KANDINSKY][entry.file])
            assert f"{server.address}/{KANDINSKY}: {entry.file}, {weights.readable(size)}\n" in out
    assert f"{server.address}/{FLAN_UL2}: pytorch_model-00001-of-00003.bin, " in out and "00003-of" not in out
    assert re.search(rf"Space for .* in {re.escape(str(models))}: up to \d+\.\d\d MB; \S+ GB are free\.", out)


def test_space_is_counted_for_what_is_there_at_once(models):
    file = hub.RemoteFile("a/b", "c", "f", 100, "0" * 64, "")
    steps = [weights.Step(PUBLISHED[key], [file], models / key, models / "x" / key, None) for key in ("movq", "text")]
    models.mkdir(parents=True)
    assert weights.space_needed(steps, keep=False) == {models: 300}  # 100 made, 100 arriving, 100 to be made
    assert weights.space_needed(steps, keep=True) == {models: 400}
    steps[0].source.with_name(f"movq.{'0' * 12}.partial").write_bytes(b"x" * 40)
    assert weights.space_needed(steps, keep=True) == {models: 360}
    assert weights.Step(PUBLISHED["movq"], [file], models, models, "float16").converted == 2 * 270_603_567


@pytest.mark.parametrize("answer, begins", [("", False), ("n", False), ("yes", True)])
def test_it_asks_first(server, models, monkeypatch, answer, begins):
    monkeypatch.setattr(builtins, "input", lambda question: answer)
    assert get(models, "projections", yes=False) == (0 if begins else 1)
    assert bool(server.downloads()) == begins == target(models, "projections").exists()


def test_nobody_to_ask(server, models, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert "add --yes" in refusal(models, "projections", yes=False)
