"""Before any test: one thread a process, and what is dear is made by one worker."""

import os
import re
from pathlib import Path

import pytest

# The tensors of goldens and tiny models are too small for threads to pay, and tests run side by side. Torch reads this
# when it is imported, which is later; servers and other programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Fixtures of the whole session that take many seconds to make, the dearest first.
SHARED = ("server", "clip")


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config, log):
    """Like loadfile, but all files that use the same of the shared fixtures go to one worker."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            text = Path(config.rootpath, file).read_text(encoding="utf-8")
            uses = (name for name in SHARED if re.search(rf"^def \w+\(.*\b{name}\b", text, re.MULTILINE))
            return next(uses, file)

    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None
