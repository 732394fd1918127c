"""Where the parts of a decoder-only language model are, as names of modules."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Layout:
    """Module paths: the first three from the model, the others from a block.

    attn_out and mlp_out name the modules whose output is added to the residual stream (in Gemma 2: the post-norms).
    norm_offset is what the final norm adds to its weight before multiplying (1 in Gemma, else 0).
    """

    family: str
    embedding: str
    blocks: str
    final_norm: str
    attn_norm: str
    attn_out: str
    mlp_norm: str
    mlp_out: str
    is_parallel: bool = False
    norm_offset: float = 0.0


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path, or None."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
