"""Before any test: one thread a process, and what is dear is made by one worker."""

import os

import pytest

# The tensors of goldens and tiny models are too small for threads to pay, and tests run side by side. Torch reads this
# when it is imported, which is later; servers and other programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Fixtures of the whole session that take seconds to make, the dearest first.
SHARED = ("server", "clip")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """With several workers, all tests of a shared fixture go to one of them; so do those of one file."""
    if config.pluginmanager.hasplugin("xdist"):
        for item in items:
            shared = next((name for name in SHARED if name in item.fixturenames), None)
            item.add_marker(pytest.mark.xdist_group(shared or item.path.stem))
