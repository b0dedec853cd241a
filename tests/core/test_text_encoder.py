"""The text encoder and its projections against the published implementation's numbers."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kv_core.networks.text_encoder import load_tokenizer, null_context
from tests.support.golden_networks import text_model as build
from tests.support.recipe import golden

FOLDER = Path(__file__).parents[2] / "models/text_encoders/kv-tiny/flan-ul2"


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("prefix, projection", [("", "base"), ("", "interpolation"), ("full.", "base")])
def test_context(prefix, projection, dtype, tolerance):
    tensors, _ = golden("text")
    ids = tensors[f"{prefix}input_ids"]
    mask = tensors.get("attention_mask") if not prefix else torch.ones_like(ids)
    with torch.no_grad():
        context, kept = build(dtype).encode(ids, mask, f"projection_{projection}", dtype)
    expected = tensors[f"{prefix}context_{projection}"]
    torch.testing.assert_close(context.float(), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(kept, tensors[f"{prefix}context_mask"])


def test_null_context():
    context, mask = null_context(torch.arange(1.0, 4.0), torch.ones(1, 5, 3))
    assert context[0, 0].tolist() == [1, 2, 3] and context[0, 1:].abs().sum() == 0
    assert mask.tolist() == [[1, 0, 0, 0, 0]]


@pytest.fixture
def folder(tmp_path):
    """The tiny tokenizer, to be spoilt."""
    return Path(shutil.copytree(FOLDER, tmp_path / "ul2", ignore=shutil.ignore_patterns("*.safetensors")))


def one_sentence(error):
    message = str(error.value)
    assert "\n" not in message and message.endswith(".") and message.count(". ") == 0
    return message


def test_code_beside_a_tokenizer_never_runs(folder, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # to the library's question whether to run it
    mark = folder / "ran"
    (folder / "code.py").write_text(
        f"open({str(mark)!r}, 'w')\nfrom transformers import PreTrainedTokenizerFast as Own, T5Config as OwnConfig\n"
    )
    settings = {"auto_map": {"AutoTokenizer": [None, "code.Own"]}, "tokenizer_class": "Own"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {"model_type": "own", "auto_map": {"AutoConfig": "code.OwnConfig", "AutoTokenizer": [None, "code.Own"]}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert "damaged or another model's" in one_sentence(error) and "trust_remote_code" not in str(error.value)
    assert not mark.exists()


def test_a_tokenizer_lies_in_a_folder_or_beside_a_file(folder):
    (folder / "encoder.safetensors").touch()
    assert load_tokenizer(folder / "encoder.safetensors").words("a cat") == load_tokenizer(folder).words("a cat")


def test_a_tokenizer_needs_its_json(folder):
    (folder / "tokenizer.json").rename(folder / "spiece.model")
    with pytest.raises(FileNotFoundError) as error:
        load_tokenizer(folder)
    assert "holds no tokenizer.json: copy it there" in one_sentence(error)


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000])
def test_a_damaged_tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(ValueError) as error:
        load_tokenizer(folder)
    assert "damaged or another model's" in one_sentence(error)
