"""Which text, which hook points, and how activations are cached."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from circuitcli.errors import SettingsError
from circuitcli.settings.section import MOST_TOKENS, FilePath, Hooks, Layers, Section, Sites, reachable

# The text that models are run on unless another is named: of those that come with the package, and of others.
BUILTIN_TEXT, DEFAULT_TEXT = "builtin:python", "hf:NeelNanda/pile-10k"
# Of a block, unless another length is set or the model's window is shorter.
BLOCK_LENGTH = 128
# Rows by which a number type is chosen.
LOOKED_AT = 2048


def default_text(model: str) -> str:
    """The text that a model is run on where none is named."""
    return BUILTIN_TEXT if model.startswith("builtin:") else DEFAULT_TEXT


def _named(text: str) -> str:
    if not text.strip():
        raise SettingsError("--text is empty", hint="give a file or a folder, or leave it out")
    return text


class DataSettings(Section):
    """Which text, which hook points, and how activations are cached."""

    text: Annotated[str, AfterValidator(_named), AfterValidator(reachable)] | None = None
    """builtin:python, a file of text or of data (.jsonl, .json, .csv, .tsv, .parquet), a folder, - for stdin, or
    hf:NAME[:CONFIG][:SPLIT], NAME on the hub or a folder; or token ids: .npy or .safetensors files, or a folder of
    them, with one axis (a stream, cut at EOS and BOS) or two (a row for each document). By default builtin:python for
    builtin models and hf:NeelNanda/pile-10k for others."""
    activations: FilePath | None = None
    """Activations that another tool cached, to be taken over instead of running the model on a text: sae_lens:PATH, the
    folder that SAELens's CacheActivationsRunner wrote. Text, hook point and block length are theirs."""
    field: str | None = None
    """Field of files of data, column of data sets or tensor of .safetensors files with the text, the token ids or the
    messages; by default text, else input_ids, tokens or messages."""
    chat: bool = False
    """Write each text with the model's chat template, as a user's message; lists of messages (role and content) always
    go through it."""
    layers: Layers = ":"
    """Blocks as a Python slice: 3:5 is 3 and 4."""
    sites: Sites = ("resid", "attn", "mlp")
    """Which of embed resid_pre attn_in attn resid_mid mlp_in mlp resid to read in each block."""
    hooks: Hooks = ()
    """Single hook points in place of layers and sites: resid_pre.0,resid.0,resid.1, or keys such as 0_act,1_act."""
    tokens: int = Field(1_000_000, ge=1, le=MOST_TOKENS)
    """Token positions to store; the last block is stored whole."""
    block_length: int | None = Field(None, ge=2, le=2**24)
    """Longest piece of text that the model sees at once, in tokens; by default 128, or the model's window if that is
    shorter."""
    pack: bool = False
    """Fill each block with several documents, with the tokenizer's EOS (else BOS) between two, which is not stored; a
    document then attends to those before it in its block. By default a block holds one document or a piece of it."""
    special_tokens: Literal["keep", "drop"] = "keep"
    """Whether special tokens that the text contains (EOS, padding, chat markers) are stored; the model sees them in any
    case. BOS in front of a block is never stored."""
    batch_size: int = Field(32, ge=1, le=2**20)
    """Most blocks in one forward pass; a CPU takes fewer at once. Changes speed and memory only."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number type of stored activations; auto looks at those of the first blocks and takes float16 if it suits their
    range and rounds away nearly nothing of their variance, else bfloat16, else float32."""
    shard_tokens: int = Field(65_536, ge=1, le=2**30)
    """Token positions in one shard; a killed run loses at most one shard."""
