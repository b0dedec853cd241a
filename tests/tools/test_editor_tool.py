"""The editor of tests and tools says what it needs."""

import importlib.util
import shutil

import pytest

from tools.comfy.editor import Editor, EditorError


@pytest.mark.parametrize(
    "lacks, sentence", [("Playwright", "pip install playwright"), ("Chromium", "install Chromium")]
)
def test_what_is_missing_is_one_sentence(monkeypatch, lacks, sentence):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: lacks != "Playwright" or None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(EditorError, match=f"There is no {lacks} .*{sentence}"):
        Editor("http://127.0.0.1:1").__enter__()
