"""The commands of this repository. Their first import is this file, so that an older Python gets a sentence."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036
    sys.exit(
        "This is Python {}.{}; Python 3.10 or newer is needed: start this command with a newer one, such as "
        "python3.12.".format(*sys.version_info[:2])
    )
