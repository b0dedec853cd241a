"""Flan-UL2, the text encoder, with the projections to the U-Nets' context.

Tay et al. 2022, "UL2: Unifying Language Learning Paradigms"; the layers are transformers' T5 encoder with its
weight-bearing layers replaced, so that a host can stream or patch them.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import silu
from transformers import AutoTokenizer, T5Config, T5EncoderModel
from transformers.models.t5.modeling_t5 import T5DenseGatedActDense, T5LayerNorm

TOKENS = 128  # what the model was trained on: a prompt's tokens, its end token included, padded or cut to this
BASE, INTERPOLATION = "projection_base", "projection_interpolation"


class GatedFeedForward(nn.Module):
    """wo(silu(wi_0 x) * wi_1 x); transformers' own casts to the type weights are stored in, 8 bit included."""

    def __init__(self, d_model, d_ff, *, operations, dtype, device):
        super().__init__()
        linear = {"bias": False, "dtype": dtype, "device": device}
        self.wi_0 = operations.Linear(d_model, d_ff, **linear)
        self.wi_1 = operations.Linear(d_model, d_ff, **linear)
        self.wo = operations.Linear(d_ff, d_model, **linear)

    def forward(self, x):
        return self.wo(silu(self.wi_0(x)) * self.wi_1(x))


def _replacement(module, *, operations, dtype, device):
    # The same layer from `operations`, or None for a module to look into.
    weights = {"dtype": dtype, "device": device}
    if isinstance(module, T5DenseGatedActDense):
        d_model, d_ff = module.wi_0.in_features, module.wi_0.out_features
        return GatedFeedForward(d_model, d_ff, operations=operations, **weights)
    if isinstance(module, nn.Linear):
        return operations.Linear(module.in_features, module.out_features, bias=False, **weights)
    if isinstance(module, nn.Embedding):
        return operations.Embedding(module.num_embeddings, module.embedding_dim, **weights)
    if isinstance(module, T5LayerNorm):
        return operations.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon, **weights)
    return None


def _replace_layers(module, **factory):
    for name, child in module.named_children():
        replacement = _replacement(child, **factory)
        if replacement is None:
            _replace_layers(child, **factory)
        else:
            setattr(module, name, replacement)


@dataclass(frozen=True)
class TextEncoderSizes:
    """The sizes of a T5 encoder, as transformers names them; the defaults are Flan-UL2's."""

    d_model: int = 4096
    d_kv: int = 256
    d_ff: int = 16384
    num_heads: int = 16
    num_layers: int = 32
    vocab_size: int = 32128
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128


class TextEncoder(nn.Module):
    """The T5 encoder with gated SiLU; keys as transformers' T5EncoderModel has them. `sizes`: of TextEncoderSizes."""

    def __init__(self, *, operations, dtype=None, device=None, **sizes):
        super().__init__()
        sizes = TextEncoderSizes(**sizes)
        config = T5Config(**asdict(sizes), feed_forward_proj="gated-silu", dropout_rate=0.0)
        # Other attention kernels want the position bias, stored in the weights' type, in the activations' type.
        config._attn_implementation = "eager"
        factory = {"operations": operations, "dtype": dtype, "device": device}
        with torch.device("meta"):
            skeleton = T5EncoderModel(config)
        self.encoder = skeleton.encoder
        self.encoder.set_input_embeddings(None)  # it is handed embeddings instead
        _replace_layers(self.encoder, **factory)
        self.shared = operations.Embedding(sizes.vocab_size, sizes.d_model, dtype=dtype, device=device)

    def forward(self, input_ids, attention_mask, dtype=torch.float32):
        """Token ids and mask `[b, n]` -> the last hidden state `[b, n, d_model]`, computed in `dtype`."""
        embeddings = self.shared(input_ids).to(dtype)
        return self.encoder(inputs_embeds=embeddings, attention_mask=attention_mask).last_hidden_state


class Projection(nn.Sequential):
    """From the encoder's width to the U-Nets' context: a Linear without bias and a LayerNorm."""

    def __init__(self, d_model=4096, context_dim=4096, *, operations, dtype=None, device=None):
        super().__init__(
            operations.Linear(d_model, context_dim, bias=False, dtype=dtype, device=device),
            operations.LayerNorm(context_dim, dtype=dtype, device=device),
        )


class TextModel(nn.Module):
    """The encoder (`encoder_config`: its sizes) with its projections; factory: operations, dtype and device of both."""

    def __init__(self, encoder_config, context_dim=4096, projections=(BASE, INTERPOLATION), **factory):
        super().__init__()
        self.text_encoder = TextEncoder(**encoder_config, **factory)
        d_model = self.text_encoder.shared.embedding_dim
        self.projections = nn.ModuleDict({name: Projection(d_model, context_dim, **factory) for name in projections})

    def encode(self, input_ids, attention_mask, projection=BASE, dtype=torch.float32):
        """Token ids and mask `[1, 128]` -> context `[1, n, d]` and its mask `[1, n]`.

        Rows of masked tokens are zero, and n is one more than the prompt's tokens where there is room: the one zero
        row that stays counts in the U-Nets' pooling. The published pipeline uses `projection_base` for every stage.
        """
        hidden = self.text_encoder(input_ids, attention_mask, dtype)
        context = self.projections[projection](hidden) * attention_mask[..., None].to(hidden)
        kept = min(int(attention_mask.sum(1).max()) + 1, attention_mask.shape[1])
        return context[:, :kept], attention_mask[:, :kept]


def null_context(null_embedding, context):
    """The unconditional context and mask of `context`'s length: the null embedding `(d,)`, then masked zeros."""
    empty = torch.zeros_like(context)
    empty[:, 0] = null_embedding.to(context)
    mask = torch.zeros(context.shape[:2], dtype=torch.long, device=context.device)
    mask[:, 0] = 1
    return empty, mask


class Tokens(NamedTuple):
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    cut: bool


class Tokenizer:
    """Text -> Tokens of exactly 128 places; `cut` says that the text was longer."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __call__(self, text):
        ids = self._tokenizer(text, verbose=False)["input_ids"]
        cut = len(ids) > TOKENS
        if cut:
            ids = [*ids[: TOKENS - 1], ids[-1]]  # the end token stays
        padding = [0] * (TOKENS - len(ids))
        mask = [1] * len(ids) + padding
        return Tokens(torch.tensor([ids + padding]), torch.tensor([mask]), cut)

    def words(self, text):
        """The words of a text as it is read, in order: pairs of a word and its number of tokens. The last is the end.

        Where tokens are pieces of words, as SentencePiece's are, the first piece of each word begins with its mark.
        """
        mark = "\u2581"
        tokens = self(text)
        ids = tokens.input_ids[tokens.attention_mask == 1]
        *pieces, end = self._tokenizer.convert_ids_to_tokens(ids.tolist())
        whole, words = not any(piece.startswith(mark) for piece in pieces), []
        for piece in pieces:
            if whole or not words or piece.startswith(mark):
                words.append((piece.removeprefix(mark), 1))
            else:
                word, count = words[-1]
                words[-1] = word + piece, count + 1
        return [*words, (end, 1)]


def load_tokenizer(path):
    """The tokenizer in a local folder, or beside a file; nothing is downloaded, and no code in the folder is run.

    Raises FileNotFoundError where there is none, and ValueError for one that cannot be read.
    """
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    # Without it, transformers would need further libraries to read spiece.model.
    if not (folder / "tokenizer.json").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer.json: copy it there from Flan-UL2's repository.")
    try:
        return Tokenizer(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False))
    except Exception:  # the library and its parsers raise many kinds for what a folder may hold
        raise ValueError(
            f"The tokenizer in {folder} is damaged or another model's: copy Flan-UL2's tokenizer.json and "
            f"tokenizer_config.json there."
        ) from None
