"""A decoder written out by hand that carries a change of its input along: the slow definition of the backward rules.

Every number is a pair of a value and its change. What a rule says of a norm, a pattern, an activation function or a
gate is one line here, and no autograd is used: a derivative by a rule is right if its product with a change of the
input is the change that arrives here.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from circuitcli.models.adapter import ModelAdapter
from circuitcli.models.taps import block_arguments


class Pair(NamedTuple):
    """A value, and how it changes."""

    value: Tensor
    change: Tensor

    def plus(self, other: "Pair") -> "Pair":
        return Pair(self.value + other.value, self.change + other.change)

    def mapped(self, linear) -> "Pair":
        """Through a linear map."""
        return Pair(linear(self.value), linear(self.change))


@dataclass
class Tangents:
    """Runs the blocks of a GPT-2, GPT-NeoX, Llama-like or Gemma model and its head by a rule: frozen, relp or gim."""

    adapter: ModelAdapter
    rule: str

    def logits(self, ids: Tensor, residual: Pair) -> Pair:
        with torch.no_grad(), block_arguments(self.adapter) as arguments:
            self.adapter.logits(ids)
        with torch.no_grad():
            for layer, (others, named) in enumerate(arguments):
                # GPT-2 hands its mask on without a name.
                given = {"attention_mask": next((one for one in others if torch.is_tensor(one)), None), **named}
                residual = self.block(layer, residual, given)
            logits = self.projected(self.adapter.unembedding, self.normed(self.adapter.final_norm, residual))
            cap = getattr(self.adapter.text_config, "final_logit_softcapping", None)
            if cap:
                value = torch.tanh(logits.value / cap)
                logits = Pair(value * cap, (1 - value.square()) * logits.change)
            return logits

    def block(self, layer: int, x: Pair, given: dict) -> Pair:
        block, layout = self.adapter.blocks[layer], self.adapter.layout
        added = self.attention(layer, self.normed(self.adapter.module(layer, "attn_norm"), x), given)
        behind = layout.attn_out != layout.attention
        added = self.normed(self.adapter.module(layer, "attn_out"), added) if behind else added
        middle = x if layout.is_parallel else x.plus(added)
        mlp = self.mlp(block, self.normed(self.adapter.module(layer, "mlp_norm"), middle))
        mlp = self.normed(self.adapter.module(layer, "mlp_out"), mlp) if behind else mlp
        return x.plus(added).plus(mlp)

    def normed(self, norm: nn.Module, x: Pair) -> Pair:
        """The denominator does not change."""
        if isinstance(norm, nn.LayerNorm):
            x = x.mapped(lambda part: part - part.mean(dim=-1, keepdim=True))
        epsilon = getattr(norm, "variance_epsilon", getattr(norm, "eps", None))
        scale = 1 / (x.value.square().mean(dim=-1, keepdim=True) + epsilon).sqrt()
        gain = norm.weight + (1 if "gemma" in type(norm).__name__.lower() else 0)
        bias = getattr(norm, "bias", None)
        return Pair(x.value * scale * gain + (0 if bias is None else bias), x.change * scale * gain)

    def projected(self, module: nn.Module, x: Pair) -> Pair:
        weight = module.weight.T if isinstance(module, nn.Linear) else module.weight
        bias = getattr(module, "bias", None)
        return Pair(x.value @ weight + (0 if bias is None else bias), x.change @ weight)

    def mlp(self, block: nn.Module, n: Pair) -> Pair:
        layout = self.adapter.layout.mlp
        function = block.get_submodule(layout.activation)
        if layout.gate is None:
            inner = self.activated(function, self.projected(block.get_submodule(layout.up), n))
        else:
            gate = self.activated(function, self.projected(block.get_submodule(layout.gate), n))
            up = self.projected(block.get_submodule(layout.up), n)
            share = 0.5 if self.rule == "relp" else 1.0
            inner = Pair(gate.value * up.value, share * (gate.change * up.value + gate.value * up.change))
        return self.projected(block.get_submodule(layout.down), inner)

    def activated(self, function: nn.Module, x: Pair) -> Pair:
        value = function(x.value)
        if self.rule == "relp":
            return Pair(value, x.change * value / x.value)
        step = 1e-5
        return Pair(value, x.change * (function(x.value + step) - function(x.value - step)) / (2 * step))

    def attention(self, layer: int, n: Pair, given: dict) -> Pair:
        module, config = self.adapter.module(layer, "attention"), self.adapter.text_config
        query, key, value, out = self.heads(module, n, config)
        if given.get("position_embeddings") is not None:
            cos, sin = given["position_embeddings"]
            query, key = (side.mapped(lambda part: turned(part, cos, sin)) for side in (query, key))
        n_shared = query.value.shape[1] // key.value.shape[1]
        key, value = (side.mapped(lambda part: part.repeat_interleave(n_shared, dim=1)) for side in (key, value))
        scale = getattr(module, "scaling", query.value.shape[-1] ** -0.5)
        cap = getattr(module, "attn_logit_softcapping", None)
        z = self.attended(query, key, value, scale=scale, mask=given["attention_mask"], cap=cap)
        return self.projected(out, z.mapped(lambda part: part.transpose(1, 2).flatten(2)))

    def attended(self, query: Pair, key: Pair, value: Pair, *, scale: float, mask: Tensor, cap: float | None) -> Pair:
        """Of a product of two, in GIM each factor gets half: queries and keys so pass two such products."""
        scores = query.value @ key.value.mT * scale
        change = (query.change @ key.value.mT + query.value @ key.change.mT) * scale / 2
        if cap:
            capped = torch.tanh(scores / cap)
            scores, change = capped * cap, change * (1 - capped.square())
        pattern = (scores + mask).softmax(dim=-1)
        if self.rule != "gim":
            return value.mapped(lambda part: pattern @ part)
        warm = ((scores + mask) / 2).softmax(dim=-1)
        jacobian = torch.diag_embed(warm) - warm[..., :, None] * warm[..., None, :]
        of_pattern = (jacobian @ change[..., None])[..., 0]
        return Pair(pattern @ value.value, (of_pattern @ value.value + pattern @ value.change) / 2)

    def heads(self, module: nn.Module, n: Pair, config) -> tuple[Pair, Pair, Pair, nn.Module]:
        """Queries, keys and values, (text, head, position, width), and the projection of what heads give."""
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

        def by_head(side: Pair) -> Pair:
            return side.mapped(lambda part: part.unflatten(-1, (-1, width)).transpose(1, 2))

        if hasattr(module, "c_attn"):
            sides = self.projected(module.c_attn, n)
            return *(by_head(sides.mapped(lambda part, i=i: part.chunk(3, dim=-1)[i])) for i in range(3)), module.c_proj
        if hasattr(module, "query_key_value"):
            sides = self.projected(module.query_key_value, n)
            sides = sides.mapped(lambda part: part.unflatten(-1, (-1, 3 * width)).transpose(1, 2))
            return *(sides.mapped(lambda part, i=i: part.chunk(3, dim=-1)[i]) for i in range(3)), module.dense
        query, key, value = (by_head(self.projected(getattr(module, f"{name}_proj"), n)) for name in "qkv")
        if hasattr(module, "q_norm"):
            query, key = self.normed(module.q_norm, query), self.normed(module.k_norm, key)
        return query, key, value, module.o_proj


def turned(part: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The first numbers of heads, turned by the angles of their positions."""
    cos, sin, n = cos[:, None], sin[:, None], cos.shape[-1]
    first, second = part[..., :n].chunk(2, dim=-1)
    return torch.cat([part[..., :n] * cos + torch.cat([-second, first], dim=-1) * sin, part[..., n:]], dim=-1)
