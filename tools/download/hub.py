"""Files of Hugging Face repositories: what a repository states about them, and downloads that resume.

huggingface_hub talks to the server: it logs in, follows redirects without passing the login on, retries when a
connection breaks, and can begin in the middle of a file. Its own hf_hub_download starts a file over after an
interruption, too costly at 8 GB, and verifies no checksum: that part is here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from huggingface_hub import HfApi, constants, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers

from tools import host

# The library has changed its HTTP client between releases; the errors of either share a parent with this one.
HUB_ERRORS = cast("tuple[type[Exception], ...]", (*HfHubHTTPError.__bases__, OSError))
BLOCK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository at one commit; `sha256` is empty for small files, which git's `blob_id` identifies."""

    repository: str
    commit: str
    name: str
    size: int
    sha256: str
    blob_id: str

    @property
    def checksum(self) -> str:
        return self.sha256 or self.blob_id


def list_files(repository: str) -> dict[str, RemoteFile]:
    """Every file of a repository, by name. Raises HostError."""
    try:
        info = HfApi().model_info(repository, files_metadata=True, timeout=30)
    except HUB_ERRORS as error:
        raise host.HostError(explain(error, repository)) from None
    return {
        file.rfilename: RemoteFile(
            repository,
            info.sha or "",
            file.rfilename,
            file.size or 0,
            file.lfs.sha256 if file.lfs else "",
            file.blob_id or "",
        )
        for file in info.siblings or []
    }


def read(remote: RemoteFile) -> bytes:
    """The content of a small file, which is not stored. Raises HostError."""
    content = io.BytesIO()
    _receive(remote, content)
    check(remote, digest(remote, io.BytesIO(content.getvalue())))
    return content.getvalue()


def fetch(remote: RemoteFile, target: Path, progress: Callable[[int, int], object] = lambda done, total: None) -> None:
    """Downloads to `target`, which appears only when its checksum is the one that the repository states.

    Resumes an interrupted download, and does nothing where the file is already there. `progress` is called with the
    bytes checked so far and in all while the checksum is computed. Raises HostError.
    """
    try:
        if target.is_file() and _digest_of(target, remote, progress) == remote.checksum:
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(remote, target)
        with partial.open("ab") as file:
            _receive(remote, file)
        found = _digest_of(partial, remote, progress)
        if found != remote.checksum:
            partial.unlink()
        check(remote, found)
        os.replace(partial, target)
    except OSError as error:
        raise host.HostError(explain(error, remote.repository)) from None


def partial_path(remote: RemoteFile, target: Path) -> Path:
    """Where an unfinished file is kept; another version of the file has another name."""
    return target.with_name(f"{target.name}.{remote.checksum[:12]}.partial")


def arrived(remote: RemoteFile, target: Path) -> int:
    """How many bytes of a file have arrived already."""
    sizes = [path.stat().st_size for path in (target, partial_path(remote, target)) if path.is_file()]
    return min(max(sizes, default=0), remote.size)


def _receive(remote: RemoteFile, file: BinaryIO) -> None:
    """Appends what is missing to an open file, with a progress bar."""
    if file.tell() > remote.size:
        file.seek(0)
        file.truncate()
    if file.tell() == remote.size:
        return
    url = hf_hub_url(remote.repository, remote.name, revision=remote.commit)
    try:
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=remote.size,
            displayed_filename=remote.name,
        )
    except HUB_ERRORS as error:
        raise host.HostError(explain(error, remote.repository)) from None


# Checksums


def digest(
    remote: RemoteFile, file: BinaryIO, progress: Callable[[int, int], object] = lambda done, total: None
) -> str:
    """The checksum of an open file, SHA-256 or git's own, whichever the repository states."""
    found = hashlib.sha256() if remote.sha256 else hashlib.sha1(b"blob %d\0" % remote.size, usedforsecurity=False)
    for done, block in enumerate(iter(lambda: file.read(BLOCK), b""), 1):
        found.update(block)
        progress(min(done * BLOCK, remote.size), remote.size)
    return found.hexdigest()


def _digest_of(path: Path, remote: RemoteFile, progress: Callable[[int, int], object]) -> str:
    with path.open("rb") as file:
        return digest(remote, file, progress)


def check(remote: RemoteFile, found: str) -> None:
    """Raises HostError where `found` is not the checksum that the repository states."""
    if found != remote.checksum:
        raise host.HostError(
            f"{remote.name} arrived with the checksum {found}, but its repository states {remote.checksum}, so it was "
            f"deleted: run the same command again, and if that does not help, see "
            f"{constants.ENDPOINT}/{remote.repository}."
        )


# What goes wrong


def explain(error: Exception, repository: str) -> str:
    """One sentence for what stopped a download, with the cure."""
    server = constants.ENDPOINT
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, GatedRepoError):  # also a RepositoryNotFoundError, so it comes first
        return (
            f"{repository} is open only to users who accepted its terms: accept them on {server}/{repository}, log in "
            "with `hf auth login` and run the same command again."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return f"{server} has no repository {repository}, or does not show it to you: see {server}/{repository}."
    if isinstance(error, EntryNotFoundError):
        return f"{repository} changed during the download: run the same command again."
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing can be downloaded: unset it and run the same command again."
    if isinstance(error, HfHubHTTPError):
        return f"{server} answered {status or 'an error'} for {repository}: run the same command again later."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "The disk is full: free some space and run the same command again to resume."
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename} cannot be read or written: {error.strerror}."
    return (
        f"{server} cannot be reached, or the connection broke: connect to the network and run the same command again "
        "to resume."
    )
