"""Before any test: one thread a process, for this one and those that tests start."""

import os

# The tensors of goldens and tiny models are too small for threads to pay, and tests run side by side. Torch reads this
# when it is imported, which is later.
os.environ.setdefault("OMP_NUM_THREADS", "1")
