"""tools/get_weights.py against a Hugging Face Hub on this machine: what it downloads, converts, resumes and refuses."""

import builtins
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import filelock
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from kv_core.files.checkpoints import encoder_shards, open_checkpoint
from kv_core.files.detection import PARTS
from kv_core.files.published import FLAN_UL2, KANDINSKY, PUBLISHED
from kv_core.networks.interpolation_unet import InterpolationUNet
from kv_core.networks.keyframe_unet import KeyframeUNet
from kv_core.networks.operations import TorchOperations
from tests.support.hub_server import HubServer
from tests.support.recipe import fill
from tools import get_weights, host
from tools.authoring import notes, templates
from tools.download import hub, weights

TINY = host.ROOT / "models"
# Small, but with the published head_dim and groups, which a .pt file has no way to state.
UNET = {
    "model_channels": 64,
    "init_channels": 64,
    "time_embed_dim": 64,
    "context_dim": 32,
    "dim_mult": (1,),
    "num_blocks": (1,),
    "add_cross_attention": (True,),
    "add_self_attention": (True,),
}
MB = 10**6


def saved(content):
    """The bytes of a .pt file."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def unet(model_class):
    model = fill(model_class(**UNET, operations=TorchOperations), model_class.__name__)
    return saved({"unet": model.half().state_dict(), "null_embedding": torch.linspace(-1, 1, 32)})


def projections(width):
    shapes = {"0.weight": (width, width), "1.weight": (width,), "1.bias": (width,)}
    names = ("projection_base", "projection_interpolation")
    return saved({name: {key: torch.full(shape, 0.5) for key, shape in shapes.items()} for name in names})


@pytest.fixture(scope="session")
def kandinsky():
    movqs = {
        f"{name}.pt": saved(load_file(TINY / f"vae/kv-tiny/{name}.safetensors")) for name in ("movq", "video_movq")
    }
    unets = {"t2v.pt": unet(KeyframeUNet), "interpolation.pt": unet(InterpolationUNet)}
    return {"README.md": b"a page", **unets, **movqs, "t5_projections.pt": projections(64)}


@pytest.fixture(scope="session")
def flan_ul2():
    """A whole T5 as its makers publish it: encoder and decoder in files of one index, in bfloat16."""
    folder = TINY / "text_encoders/kv-tiny/flan-ul2"
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    names = sorted(tensors)
    parts = [
        {name: tensors[name] for name in names[::2]},
        {name: tensors[name] for name in names[1::2]} | {"decoder.block.0.weight": torch.zeros(9)},
        {"decoder.block.1.weight": torch.zeros(9), "lm_head.weight": torch.zeros(9)},
    ]
    weight_map = {}
    for number, part in enumerate(parts, 1):
        files[name := f"pytorch_model-0000{number}-of-00003.bin"] = saved(part)
        weight_map |= dict.fromkeys(part, name)
    return {**files, "pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode()}


@pytest.fixture
def server(kandinsky, flan_ul2, monkeypatch):
    """A hub that huggingface_hub takes for the real one."""
    with HubServer() as running:
        running.repositories = {KANDINSKY: dict(kandinsky), FLAN_UL2: dict(flan_ul2)}
        point_to(running.address, monkeypatch)
        yield running


def point_to(address, monkeypatch):
    constants = huggingface_hub.constants
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def models(tmp_path):
    return tmp_path / "ComfyUI/models"


def get(models, *only, **changes):
    options = {"dry_run": False, "dtype": None, "keep_original": False, "yes": True}
    return weights.guarded({**options, "models": str(models), "only": only or None, **changes})


def refusal(models, *only, **changes):
    """The one sentence with which it stops."""
    with pytest.raises(host.HostError) as error:
        get(models, *only, **changes)
    message = str(error.value)
    assert re.fullmatch(r"\S[^\n]+\.", message) and ". " not in message, message
    return message


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def target(models, key):
    return models / PUBLISHED[key].folder / PUBLISHED[key].name


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
    assert capsys.readouterr().out.count("is there already") == len(PUBLISHED)
    assert len(server.downloads()) == before


def test_of_a_whole_t5_only_the_encoder_is_downloaded(server, models):
    get(models, "text", dtype="float16")
    assert not {"pytorch_model-00003-of-00003.bin", "README.md"} & set(server.downloads())
    tensors = open_checkpoint(target(models, "text")).state_dict()
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
    assert f"movq: the image MoVQ, is there already: {target(models, 'movq')}\n" in out
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


# Stopped in the middle


@pytest.fixture
def large(server):
    """The projections in a file so large that it comes in several pieces, of which the last never comes."""
    server.repositories[KANDINSKY]["t5_projections.pt"] = projections(1700)  # 23 MB
    server.stall_after = 21 * MB
    return server


def partial_files(models):
    return list((models / weights.DOWNLOADS).glob("*.partial"))


def test_goes_on_after_it_was_killed(large, models):
    options = {"dry_run": False, "dtype": None, "keep_original": False, "yes": True}
    settings = json.dumps({**options, "models": str(models), "only": ["projections"]})
    environ = {**os.environ, "HF_ENDPOINT": large.address, "HF_HUB_OFFLINE": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "tools.download.weights", settings],
        cwd=host.ROOT,
        env=environ,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size > 10 * MB for path in partial_files(models)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.kill()
    assert not target(models, "projections").exists()
    [partial] = partial_files(models)
    there = partial.stat().st_size
    large.stall_after = None
    assert get(models, "projections") == 0
    assert large.asked[-1][1] == f"bytes={there}-"
    assert open_checkpoint(target(models, "projections")).part == "projections"
    assert not (models / weights.DOWNLOADS).exists()


def test_begins_anew_where_the_server_cannot_go_on(server, models, kandinsky):
    downloads = models / weights.DOWNLOADS
    downloads.mkdir(parents=True)
    [file] = [file for file in hub.list_files(KANDINSKY).values() if file.name == "t5_projections.pt"]
    hub.partial_path(file, downloads / "t5_projections.pt").write_bytes(kandinsky["t5_projections.pt"][:5000])
    server.ranges = False
    assert get(models, "projections") == 0 and target(models, "projections").exists()


def test_stopped_by_hand(large, models, monkeypatch, capsys):
    def stop(url, file, **options):
        file.write(large.repositories[KANDINSKY]["t5_projections.pt"][: 12 * MB])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "http_get", stop)
        assert get(models, "projections") == 130
    assert capsys.readouterr().err.endswith("\nStopped: the same command goes on from here.\n")
    assert [path.stat().st_size for path in partial_files(models)] == [12 * MB]
    assert get(models, "projections", dry_run=True) == 0
    assert "12.00 MB of it here already" in capsys.readouterr().out


def test_stopped_while_it_converts(server, models, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("kv_core.files.conversion._bytes", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert get(models, "projections") == 130
    assert files_in(models) == [f"{weights.DOWNLOADS}/t5_projections.pt"]
    assert get(models, "projections") == 0
    assert server.downloads() == ["t5_projections.pt"]


# What stops it


def test_a_wrong_checksum(server, models):
    server.false = {"t5_projections.pt": "0" * 64}
    message = refusal(models, "projections")
    assert message.startswith("t5_projections.pt arrived with the checksum ") and f"states {'0' * 64}, so" in message
    assert files_in(models) == []


def test_a_wrong_checksum_of_a_small_file(server):
    listed = hub.list_files(FLAN_UL2)["config.json"]
    server.repositories[FLAN_UL2]["config.json"] = b" " * listed.size
    with pytest.raises(host.HostError, match="config.json arrived with the checksum"):
        hub.read(listed)


def test_a_file_that_is_no_part(server, models):
    server.repositories[KANDINSKY]["movq.pt"] = server.repositories[KANDINSKY]["video_movq.pt"]
    assert "movq.pt holds the temporal MoVQ instead of the image MoVQ" in refusal(models, "movq")
    assert not target(models, "movq").exists()


Usage = namedtuple("Usage", "total used free")


def test_too_little_space(server, models, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 30_000))
    message = refusal(models, "projections")
    assert "has 30.00 kB free, but up to 72." in message and "smaller --dtype" in message
    assert server.downloads() == [] and not models.exists()


def test_a_disk_that_fills_up(server, models, monkeypatch):
    def fill_up(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub, "http_get", fill_up)
    assert refusal(models, "projections").startswith("The disk is full: free some space and run the same command")


def test_no_network(models, monkeypatch):
    with HubServer() as gone:
        pass
    point_to(gone.address, monkeypatch)
    assert refusal(models, "movq").startswith(f"{gone.address} cannot be reached, or the connection broke: ")


@pytest.mark.parametrize(
    "status, headers, words",
    [
        (403, {"X-Error-Code": "GatedRepo"}, "accept them on {page}, log in with `hf auth login`"),
        (401, {}, "has no repository {name}, or shows it only to some: look at {page}"),
        (404, {"X-Error-Code": "RepoNotFound"}, "has no repository {name}, or shows it only to some: look at {page}"),
        (500, {}, "answered 500 for {name}: run the same command again later"),
    ],
)
def test_a_repository_that_is_closed(server, models, status, headers, words):
    server.refused = {KANDINSKY: (status, headers)}
    page = f"{server.address}/{KANDINSKY}"
    assert words.format(name=KANDINSKY, page=page) in refusal(models, "movq")


def test_a_repository_without_the_file(server, models):
    del server.repositories[KANDINSKY]["movq.pt"]
    assert f"{KANDINSKY} has no file movq.pt any more: look at huggingface.co/{KANDINSKY}" in refusal(models, "movq")


@pytest.mark.parametrize("index", [b"[", b"{}", b'{"weight_map": {"decoder.a": "x.bin"}}'])
def test_an_index_that_says_nothing(server, models, index):
    server.repositories[FLAN_UL2]["pytorch_model.bin.index.json"] = index
    assert "does not say which files hold the weights" in refusal(models, "text")


@pytest.mark.parametrize("name", ["vae", weights.DOWNLOADS])
def test_a_folder_that_cannot_be_written(server, models, name):
    models.mkdir(parents=True)
    (models / name).touch()
    assert refusal(models, "movq").startswith(f"{models / name} cannot be written: ")
    assert server.downloads() == []


def test_a_damaged_file_in_the_way(server, models):
    target(models, "movq").parent.mkdir(parents=True)
    target(models, "movq").write_bytes(b"<html>")
    assert refusal(models, "movq").startswith(f"Delete {target(models, 'movq')}, which cannot be used: ")


def test_only_one_at_a_time(server, models):
    (models / weights.DOWNLOADS).mkdir(parents=True)
    with filelock.FileLock(models / weights.DOWNLOADS / weights.LOCK):
        assert "is at work: wait for it to end" in refusal(models, "movq")
    assert server.downloads() == []


def test_the_login_stays_with_the_hub(server, models, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as elsewhere:
        elsewhere.repositories = server.repositories
        server.elsewhere = elsewhere.address
        assert get(models, "projections") == 0
        assert {login for _, _, login in server.asked} == {"Bearer hf_secret"}
        assert [login for _, _, login in elsewhere.asked] == [None]


# The command


def test_the_command_hands_over(models, monkeypatch):
    comfyui = models.parent
    comfyui.mkdir()
    (comfyui / "main.py").touch()
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.30.0"\n')
    calls = []
    monkeypatch.setattr(host, "find_python", lambda path: Path(sys.executable))
    monkeypatch.setattr(sys, "argv", ["get_weights.py", "--comfyui", str(comfyui), "--only", "text", "movq", "--yes"])
    child = type("Child", (), {"wait": lambda self: 7})
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: calls.append(command) or child())
    assert get_weights.main() == 7
    [[python, _, module, settings]] = calls
    assert (python, module) == (Path(sys.executable), "tools.download.weights")
    assert json.loads(settings) == {
        "dry_run": False,
        "only": ["text", "movq"],
        "dtype": None,
        "keep_original": False,
        "yes": True,
        "models": str(models),
    }


def test_without_comfyui(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(host, "CACHE", tmp_path)
    with pytest.raises(host.HostError, match="There is no ComfyUI yet"):
        get_weights.find_comfyui(None)


def test_types_are_the_converters():
    from kv_core.files.conversion import DTYPES

    assert set(get_weights.DTYPES) == DTYPES.keys() == weights.BYTES.keys()


# The table


def test_the_table_names_every_part_once():
    assert sorted(entry.part for entry in PUBLISHED.values()) == sorted(PARTS)


@pytest.mark.parametrize("key", PUBLISHED)
def test_the_readme_has_the_tables_facts(key):
    entry = PUBLISHED[key]
    rows = [row for row in (host.ROOT / "README.md").read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    [row] = [row for row in rows if f"| `{key}` |" in row]
    facts = (entry.name, entry.folder, entry.repository, f"{entry.parameters / 1e9:.2f} B", f"{entry.gigabytes} GB")
    assert all(fact in row for fact in facts), row


def test_templates_link_to_the_published_files_of_their_tiny_ones():
    links = {value: templates.links_to_models([value, "default"]).get("models") for value in notes.TINY}
    assert [entry.part for entry in notes.TINY.values()] == [
        open_checkpoint(next(path for path in TINY.glob(f"*/{value}"))).part for value in links
    ]
    assert links["kv-tiny/flan-ul2"] is None, "a folder, which the editor cannot download"
    assert links["kv-tiny/movq.safetensors"] == [
        {
            "name": "movq.pt",
            "url": "https://huggingface.co/ai-forever/KandinskyVideo_1_1/resolve/main/movq.pt",
            "directory": "vae",
        }
    ]
    # The editor offers a linked file when a list is set to its name, which no template does.
    assert not {link["name"] for models in links.values() for link in models or []} & notes.TINY.keys()
