"""Families of cases: which are quick, and which run with `tools/test.py --all` only."""

import pytest


def thorough(*values):
    """A case that is not quick."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def quick_cases(*quick, of):
    """All cases `of` a family; only those in `quick` are quick."""
    assert set(quick) <= set(of)
    return [case if case in quick else thorough(case) for case in of]
