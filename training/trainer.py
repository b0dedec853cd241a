"""One training stage: optimiser, moving average, curve, and a state on disk from which a killed run goes on."""

import csv
import os
import time
from pathlib import Path

import torch
from tqdm import tqdm

from . import workers

# For processes that run side by side, read when they start. By default torch's threads wait for each other in a busy
# loop, in the other's way; and glibc gives large tensors back to the system after every use and asks for them again.
SIDE_BY_SIDE = {
    "OMP_WAIT_POLICY": "passive",
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
}


class Trainer:
    """Trains `modules` (name -> module) for `steps` steps of loss(step, generator).

    AdamW with a warm-up and a cosine to zero; `shadow` (name -> state dict) are the weights' exponential moving
    averages, which sample better than the last ones. The state goes to `<folder>/<name>.state.pt`, atomically, every
    `save_every` seconds; the curve to `<name>.csv`. The randomness of a step depends on the seed, the step and the
    worker alone, so a resumed run is the same run. Of several workers (see workers.py) the first writes the files.
    """

    def __init__(self, name, modules, folder, steps, learning_rate, *, seed=0, decay=0.999, save_every=120):
        self.name, self.modules, self.folder, self.steps = name, modules, Path(folder), steps
        self.learning_rate, self.seed, self.decay, self.save_every = learning_rate, seed, decay, save_every
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(parameters, learning_rate, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
        self.parameters = parameters
        self.shadow = {key: _copy(module) for key, module in modules.items()}
        self.step = 0

    @property
    def state_path(self):
        return self.folder / f"{self.name}.state.pt"

    def run(self, loss):
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

    def _train_step(self, loss):
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate * self._schedule()
        place = self.step * workers.count() + workers.rank()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        value = loss(self.step, generator)
        self.optimiser.zero_grad(set_to_none=True)
        value.backward()
        workers.average(self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for key, module in self.modules.items():
                weights = module.state_dict()
                torch._foreach_lerp_([self.shadow[key][name] for name in weights], [*weights.values()], 1 - decay)
        return value.item()

    def _schedule(self):
        warm_up = min(1.0, (self.step + 1) / 200)
        return warm_up * 0.5 * (1 + torch.tensor(torch.pi * self.step / self.steps).cos().item())

    def _note(self, mean):
        path = self.folder / f"{self.name}.csv"
        with path.open("a", newline="") as file:
            csv.writer(file).writerow([self.step, f"{mean:.6f}"])

    def _save(self):
        state = {
            "step": self.step,
            "modules": {key: module.state_dict() for key, module in self.modules.items()},
            "shadow": self.shadow,
            "optimiser": self.optimiser.state_dict(),
        }
        partial = self.state_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.state_path)

    def _resume(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.state_path.is_file():
            return
        state = torch.load(self.state_path, weights_only=True)
        for key, module in self.modules.items():
            module.load_state_dict(state["modules"][key])
        self.shadow, self.step = state["shadow"], state["step"]
        self.optimiser.load_state_dict(state["optimiser"])


def _copy(module):
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}
