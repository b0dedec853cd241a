"""What this process takes of the machine; needs nothing of the host."""

import sys

import psutil  # ComfyUI brings it


def peak():
    """The most bytes of memory that this process ever held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
