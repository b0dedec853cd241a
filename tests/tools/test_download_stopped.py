"""The download interrupted: resumed where it was, and every failure is one sentence that leaves nothing broken."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import filelock
import pytest

from kv_core.files.checkpoints import open_checkpoint
from kv_core.files.published import FLAN_UL2, KANDINSKY
from tests.support.hub_server import HubServer
from tests.support.small_hub import OPTIONS, files_in, get, point_to, projections, refusal, target
from tools import host
from tools.download import hub, weights

MB = 10**6

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
    settings = json.dumps({**OPTIONS, "models": str(models), "only": ["projections"]})
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
    assert capsys.readouterr().err.endswith("\nStopped: run the same command again to resume.\n")
    assert [path.stat().st_size for path in partial_files(models)] == [12 * MB]
    assert get(models, "projections", dry_run=True) == 0
    assert "12.00 MB already here" in capsys.readouterr().out


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
        (401, {}, "has no repository {name}, or does not show it to you: see {page}"),
        (404, {"X-Error-Code": "RepoNotFound"}, "has no repository {name}, or does not show it to you: see {page}"),
        (500, {}, "answered 500 for {name}: run the same command again later"),
    ],
)
def test_a_repository_that_is_closed(server, models, status, headers, words):
    server.refused = {KANDINSKY: (status, headers)}
    page = f"{server.address}/{KANDINSKY}"
    assert words.format(name=KANDINSKY, page=page) in refusal(models, "movq")


def test_a_repository_without_the_file(server, models):
    del server.repositories[KANDINSKY]["movq.pt"]
    assert f"{KANDINSKY} no longer has the file movq.pt: see huggingface.co/{KANDINSKY}" in refusal(models, "movq")


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
        assert "is running: wait for it to finish" in refusal(models, "movq")
    assert server.downloads() == []


def test_the_login_stays_with_the_hub(server, models, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with HubServer() as elsewhere:
        elsewhere.repositories = server.repositories
        server.elsewhere = elsewhere.address
        assert get(models, "projections") == 0
        assert {login for _, _, login in server.asked} == {"Bearer hf_secret"}
        assert [login for _, _, login in elsewhere.asked] == [None]
