"""One training stage: optimiser, moving average, curve, and a state on disk from which a killed run goes on."""

import csv
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from kv_core.files.conversion import appearing

from . import workers

WARM_UP = 200  # steps, or a tenth of a shorter run
DECAY = 0.999  # of the moving average
Loss = Callable[[int, torch.Generator], torch.Tensor]  # of a step

# For processes that run side by side, read when they start. By default torch's threads wait for each other in a busy
# loop, in the other's way; and glibc gives large tensors back to the system after every use and asks for them again.
SIDE_BY_SIDE = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}


class Trainer:
    """Trains `modules` (name -> module) for `steps` steps of loss(step, generator).

    AdamW with a linear warm-up and a cosine to zero; `averages` (name -> AveragedModel) hold the exponential moving
    averages of the weights, which sample better than the last ones. The state goes to `<folder>/<name>.state.pt`,
    atomically, every `save_every` seconds; the curve to `<name>.csv`. The randomness of a step depends on the seed, the
    step and the worker alone, so a resumed run is the same run. Of several workers (see workers.py) the first writes
    the files.
    """

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        folder: Path,
        steps: int,
        learning_rate: float,
        *,
        seed: int = 0,
        save_every: float = 120,
    ):
        self.name, self.modules, self.folder, self.steps = name, modules, Path(folder), steps
        self.seed, self.save_every = seed, save_every
        self.parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True
        )
        self.rate = _rate(self.optimiser, steps)
        self.averages = {key: averaged(module) for key, module in modules.items()}
        self.step = 0

    @property
    def state_path(self) -> Path:
        return self.folder / f"{self.name}.state.pt"

    def run(self, loss: Loss) -> "Trainer":
        """Trains to the end, from where an earlier run stopped; does nothing where it is finished."""
        self._resume()
        saved, parent = time.monotonic(), os.getppid()
        bar = tqdm(
            total=self.steps,
            initial=self.step,
            desc=self.name,
            mininterval=1,
            disable=self.step == self.steps or workers.rank() > 0,
        )
        mean = None
        while self.step < self.steps:
            if os.getppid() != parent:
                raise SystemExit(1)  # whoever started this process was killed
            value = self._train_step(loss)
            mean = value if mean is None else 0.98 * mean + 0.02 * value
            bar.update()
            if workers.rank() > 0:
                continue
            if self.step % 50 == 0:
                bar.set_postfix(loss=f"{mean:.4f}")
                self._note(mean)
            if time.monotonic() - saved > self.save_every or self.step == self.steps:
                self._save()
                saved = time.monotonic()
        return self

    def _train_step(self, loss: Loss) -> float:
        place = self.step * workers.count() + workers.rank()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        value = loss(self.step, generator)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        workers.average(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0, error_if_nonfinite=True)
        self.optimiser.step()
        self.rate.step()
        self.step += 1
        for key, module in self.modules.items():
            self.averages[key].update_parameters(module)
        return value.item()

    def _note(self, mean):
        path = self.folder / f"{self.name}.csv"
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([self.step, f"{mean:.6f}"])

    def _save(self):
        state = {
            "step": self.step,
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "averages": {key: average.state_dict() for key, average in self.averages.items()},
            "optimiser": self.optimiser.state_dict(),
            "rate": self.rate.state_dict(),
        }
        with appearing(self.state_path) as partial:
            torch.save(state, partial)

    def _resume(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.state_path.is_file():
            return
        state = torch.load(self.state_path, weights_only=True)
        self.step = state["step"]
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
            self.averages[key].load_state_dict(state["averages"][key])
        self.optimiser.load_state_dict(state["optimiser"])
        self.rate.load_state_dict(state["rate"])


def load_averages(path: Path, modules: dict[str, nn.Module], device: torch.device) -> None:
    """Fills the modules with the averaged weights of a finished stage's state."""
    averages = torch.load(path, map_location=device, weights_only=True)["averages"]
    for key, module in modules.items():
        average = averaged(module)
        average.load_state_dict(averages[key])
        module.load_state_dict(average.module.state_dict())


def averaged(module: nn.Module) -> AveragedModel:
    def average(averages, weights, count):
        # The weights of the first steps are forgotten sooner, so that a short run has an average too.
        decay = min(DECAY, (1 + int(count)) / (10 + int(count)))
        get_ema_multi_avg_fn(decay)(averages, weights, count)

    return AveragedModel(module, multi_avg_fn=average)


def _rate(optimiser, steps):
    warm_up = max(1, min(WARM_UP, steps // 10))
    rising = LinearLR(optimiser, 1 / warm_up, total_iters=warm_up)
    falling = CosineAnnealingLR(optimiser, max(1, steps - warm_up))
    return SequentialLR(optimiser, [rising, falling], [warm_up])
