"""The attention of one block, head by head, as functions whose parts are linear maps and norms.

    score[h, i, j] = scale * q[h, i] . k[h, j]        q, k = turned(normed(x W + b))
    z[h, i] = sum over j of pattern[h, i, j] v[h, j]  pattern = softmax of the scores, capped and masked
    added[i] = sum over h of z[h, i] W_O[h] + b_O

with x what attention reads (``attn_in``). Norms of queries and keys, the cap and the turning (rotary embedding) are
only where the model has them; heads of a group share keys and values.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.layout import AttentionLayout
from circuitcli.models.projections import Norm, Projection, WeightReader

# For hints.
KNOWN = "heads are known of GPT-2, GPT-NeoX, Llama, Mistral, Qwen 2 and 3, and Gemma models"


@dataclass(frozen=True)
class Rotation:
    """The rotary embedding: each position turns the first ``cos.shape[-1]`` numbers of a head by its own angles."""

    cos: Float[Tensor, "position turned"]
    sin: Float[Tensor, "position turned"]

    def at(self, position: int) -> "Rotation":
        """That of one position."""
        return Rotation(self.cos[position : position + 1], self.sin[position : position + 1])

    def __call__(self, x: Float[Tensor, "*batch position width"]) -> Float[Tensor, "*batch position width"]:
        """The numbers of heads, turned."""
        n_turned = self.cos.shape[-1]
        turned, rest = x[..., :n_turned], x[..., n_turned:]
        first, second = turned.chunk(2, dim=-1)
        turned = turned * self.cos + torch.cat((-second, first), dim=-1) * self.sin
        return torch.cat((turned, rest), dim=-1)


@dataclass(frozen=True)
class Side:
    """How queries or keys come from what attention reads: of all heads, those of a group one after the other."""

    projection: Projection
    norm: Norm | None
    rotation: Rotation | None
    width: int

    def projected(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row head position width"]:
        """Before the norm."""
        return _by_head(self.projection(x), self.width)

    def finished(self, projected: Float[Tensor, "row head position width"]) -> Float[Tensor, "row head position width"]:
        """Normed and turned."""
        normed = projected if self.norm is None else self.norm(projected)
        return normed if self.rotation is None else self.rotation(normed)

    def __call__(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row head position width"]:
        """Queries or keys."""
        return self.finished(self.projected(x))

    def linear(self, x: Float[Tensor, " d_model"], *, head: int, position: int) -> Projection:
        """What one head makes of this activation, as a linear map of it: the norm's denominator is constant."""
        rows = slice(head * self.width, (head + 1) * self.width)
        columns = torch.cat((self.projection.weight[rows], self.projection.bias[rows, None]), dim=1)  # (width, +1)
        turned = columns.T[:, None]  # (+1, position, width), with one position
        if self.norm is not None:
            projected = self.projection.weight[rows] @ x + self.projection.bias[rows]
            turned = turned * self.norm.gain * self.norm.normed(projected).scale
        turned = (turned if self.rotation is None else self.rotation.at(position)(turned))[:, 0]
        return Projection(turned[:-1].T, turned[-1])


@dataclass(frozen=True)
class Attention:
    """The attention of one block on texts of one length. before: the norm whose output it reads, if there is one;
    after: that of what it adds."""

    query: Side
    key: Side
    value: Projection
    output: Projection
    before: Norm | None
    after: Norm | None
    scale: float
    soft_cap: float | None
    window: int | None

    @property
    def width(self) -> int:
        """Numbers of a head."""
        return self.query.width

    @property
    def n_heads(self) -> int:
        """Number of heads."""
        return self.output.weight.shape[1] // self.width

    @property
    def n_groups(self) -> int:
        """Number of heads that have keys and values of their own."""
        return self.value.weight.shape[0] // self.width

    def group(self, head: int) -> int:
        """Whose keys and values a head reads."""
        return head * self.n_groups // self.n_heads

    def shared(self, x: Float[Tensor, "row group position width"]) -> Float[Tensor, "row head position width"]:
        """Keys or values as each head reads them."""
        return x.repeat_interleave(self.n_heads // self.n_groups, dim=1)

    def values(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row head position width"]:
        """What each head moves."""
        return self.shared(_by_head(self.value(x), self.width))

    def scores(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row head query key"]:
        """Products of queries and keys, scaled; before cap and mask."""
        return self.query(x) @ self.shared(self.key(x)).transpose(2, 3) * self.scale

    def pattern(self, scores: Float[Tensor, "row head query key"]) -> Float[Tensor, "row head query key"]:
        """How much each position reads from each."""
        if self.soft_cap is not None:
            scores = torch.tanh(scores / self.soft_cap) * self.soft_cap
        return scores.masked_fill(~self._seen(scores), -torch.inf).softmax(dim=-1)

    def mixed(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row head position width"]:
        """What each head reads, before the output projection."""
        return self.pattern(self.scores(x)) @ self.values(x)

    def added(self, mixed: Float[Tensor, "row head position width"]) -> Float[Tensor, "row head position d_model"]:
        """What each head adds to the output of the attention; the output's bias is nobody's."""
        weights = self.output.weight.unflatten(1, (self.n_heads, self.width))  # (d_model, head, width)
        return torch.einsum("rhpw,dhw->rhpd", mixed, weights)

    def _seen(self, scores: Tensor) -> Bool[Tensor, "query key"]:
        """The keys that a query may look at: none behind it, and none further away than the window."""
        n = scores.shape[-1]
        distance = torch.arange(n, device=scores.device)[:, None] - torch.arange(n, device=scores.device)
        return (distance >= 0) & (distance < (n if self.window is None else self.window))


def check_heads(adapter: ModelAdapter) -> None:
    """Raise InputError if the heads of a model are not known."""
    if any(layout.heads is None for layout in adapter.layouts):
        raise InputError(f"the heads of model type '{adapter.model_type}' are not known", hint=KNOWN)


def attention_of(
    adapter: ModelAdapter, layer: int, arguments: dict[str, Any], *, device: torch.device, dtype: torch.dtype
) -> Attention:
    """The attention of a block. arguments: the keywords of the block in a pass over the texts.

    Raises InputError if the model's heads are not known.
    """
    check_heads(adapter)
    places, block = adapter.layouts[layer], adapter.blocks[layer]
    layout = places.heads
    assert layout is not None
    module: Any = adapter.module(layer, "attention")
    reader = WeightReader(device, dtype, places.norm_offset)
    n_heads = int(adapter.text_config.num_attention_heads)
    query, key, value = _projections(reader, block, layout, n_heads=n_heads)
    output = reader.projection(block.get_submodule(layout.output))
    width = output.weight.shape[1] // n_heads
    rotation = _rotation(arguments.get("position_embeddings"), device=device, dtype=dtype)

    def side(projection: Projection, norm: str | None) -> Side:
        normed = None if norm is None else reader.norm(block.get_submodule(norm), width)
        return Side(projection, normed, rotation, width)

    def norm(name: str, *, there: bool) -> Norm | None:
        return reader.norm(adapter.module(layer, name), adapter.d_model) if there else None

    return Attention(
        query=side(query, layout.query_norm),
        key=side(key, layout.key_norm),
        value=value,
        output=output,
        before=norm("attn_norm", there=places.attn_norm is not None),
        after=norm("attn_out", there=places.attn_out != places.attention),
        scale=float(module.scaling),
        soft_cap=None if layout.soft_cap is None else getattr(module, layout.soft_cap),
        window=getattr(module, "sliding_window", getattr(adapter.text_config, "sliding_window", None)),
    )


def _projections(
    reader: WeightReader, block: nn.Module, layout: AttentionLayout, *, n_heads: int
) -> tuple[Projection, Projection, Projection]:
    """Of queries, keys and values."""
    if layout.fused is None:
        query, key, value = (block.get_submodule(name or "") for name in (layout.query, layout.key, layout.value))
        return reader.projection(query), reader.projection(key), reader.projection(value)
    whole = reader.projection(block.get_submodule(layout.fused))
    sizes = (n_heads, 3, -1) if layout.by_head else (3, n_heads, -1)
    axis = 1 if layout.by_head else 0
    parts = [
        Projection(weight.flatten(0, 1), bias.flatten())
        for weight, bias in zip(
            whole.weight.unflatten(0, sizes).unbind(axis), whole.bias.unflatten(0, sizes).unbind(axis), strict=True
        )
    ]
    return parts[0], parts[1], parts[2]


def _rotation(angles: Any, *, device: torch.device, dtype: torch.dtype) -> Rotation | None:
    if angles is None:
        return None
    # Texts of one length without padding have the same positions.
    cos, sin = (part[0].to(device, dtype) for part in angles)
    return Rotation(cos, sin)


def _by_head(x: Float[Tensor, "row position all"], width: int) -> Float[Tensor, "row head position width"]:
    return x.unflatten(-1, (-1, width)).transpose(1, 2)
