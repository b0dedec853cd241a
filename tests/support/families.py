"""Parametrised families of tests: which of their cases are quick."""

import pytest


def thorough(*values, id=None):
    """A case that runs with `tools/test.py --all` only."""
    return pytest.param(*values, marks=pytest.mark.thorough, id=id)


def quick(first, *, of):
    """All cases `of` a family, of which those in `first` are quick and the others thorough."""
    unknown = [case for case in first if case not in of]
    assert not unknown, f"no such cases: {unknown}"
    return [case if case in first else thorough(case) for case in of]
