"""Fixtures for the tests of the download."""

from tests.support.small_hub import flan_ul2, hub_server, kandinsky, models  # noqa: F401
