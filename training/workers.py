"""Data-parallel training: every process takes its share of a batch, and all step with the mean gradient.

A process that has not joined others works alone.
"""

import contextlib
import datetime
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

# The defaults of its functions keep the group there is when it is imported, which torch's optimisers do. Then the
# group's threads outlive it, and sometimes abort the process as it ends.
import torch.distributed.nn  # noqa: F401
from torch import distributed


@contextlib.contextmanager
def joined(meeting_place: Path, rank: int, count: int) -> Iterator[None]:
    """Makes this process number `rank` of `count`, which meet through the file `meeting_place` (removed beforehand)."""
    if count == 1:
        yield
        return
    patience = datetime.timedelta(hours=2)  # the first makes the clips while the others wait
    where = meeting_place.absolute().as_uri()
    distributed.init_process_group("gloo", where, patience, rank=rank, world_size=count)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def count() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(rows: int) -> int:
    """This process' part of a batch of `rows`; no less than one."""
    return max(1, rows // count())


def wait() -> None:
    """Returns when all processes are here."""
    if count() > 1:
        distributed.barrier()


def in_turn(make: Callable[[], Any]) -> Any:
    """make() by the first process, then by the others, which find on disk what the first has made."""
    made = make() if rank() == 0 else None
    wait()
    return made if rank() == 0 else make()


def average(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replaces the gradients of `parameters` by their means over all processes; all must have the same ones."""
    if count() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(flat)
    means = (flat / count()).split([gradient.numel() for gradient in gradients])
    torch._foreach_copy_(gradients, [mean.view_as(gradient) for mean, gradient in zip(means, gradients)])
