"""Ordinary Hugging Face models whose weights are set by hand.

The residual stream holds named variables, each along a direction of its own; heads and neurons read and write them. A
constant, far larger than all variables together, is in the stream at every position, so that norms divide by the same
number wherever they stand (to a few parts in 100,000), and their gain undoes it. A direction has as much on one axis as
it takes off another, so that LayerNorm's mean is zero. What is left of the norms is what a real model has too: every
variable moves every other one a little.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

# The constant: heads and neurons read it as 1.
ONE = "one"
SIZE = 300.0
BOS = "<bos>"
# Attention scores: what a head looks for, and what the first token gets where it finds nothing.
FOUND, NOTHING = 20.0, 10.0

Weights = Mapping[str, float]


@dataclass(frozen=True)
class Head:
    """A head that attends by a sum of ``query * key * score`` and moves variables to others.

    Where no score is above `NOTHING` it looks at the first token, which holds no variable that is moved.
    """

    scores: tuple[tuple[str, str, float], ...]
    moves: Mapping[str, str]


@dataclass(frozen=True)
class Neuron:
    """``relu`` of a sum of variables, added to others."""

    reads: Weights
    writes: Weights


@dataclass(frozen=True)
class Block:
    """What a layer does."""

    heads: tuple[Head, ...] = ()
    neurons: tuple[Neuron, ...] = ()


def step(reads: Weights, writes: Weights) -> tuple[Neuron, Neuron]:
    """Two neurons that rise from 0 to 1 while the sum of what they read does, and stay there."""
    lower = {**reads, ONE: reads.get(ONE, 0.0) - 1.0}
    return Neuron(reads, writes), Neuron(lower, {name: -weight for name, weight in writes.items()})


@dataclass(frozen=True)
class Wiring:
    """A whole model: what tokens and positions hold, what each layer does, and what the logits read.

    tokens: variables of each token, in the order of their ids. positions: variables of each position (GPT-2 alone has
    them). logits: for each token what its logit reads.
    """

    tokens: Mapping[str, Weights]
    blocks: Sequence[Block]
    logits: Mapping[str, Weights]
    positions: Sequence[Weights] = ()

    @property
    def token_names(self) -> tuple[str, ...]:
        """Tokens by id; the first is BOS."""
        return (BOS, *self.tokens)

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables as they first come."""
        return tuple(name for name in dict.fromkeys(self._names()) if name not in (ONE, BOS))

    def _names(self) -> Iterable[str]:
        for part in (*self.tokens.values(), *self.positions):
            yield from part
        for block in self.blocks:
            for head in block.heads:
                yield from (name for query, key, _ in head.scores for name in (query, key))
                yield from (name for pair in head.moves.items() for name in pair)
            for neuron in block.neurons:
                yield from (*neuron.reads, *neuron.writes)
        for part in self.logits.values():
            yield from part

    def model(self, family: str) -> PreTrainedModel:
        """The model as one of a family, in float64."""
        return Weighted(self).model(family)


class Weighted:
    """The matrices of a wiring, as no family lays them out."""

    def __init__(self, wiring: Wiring) -> None:
        self.wiring = wiring
        self.n_heads = max(2, *(len(block.heads) for block in wiring.blocks))
        self.n_neurons = max(2, *(len(block.neurons) for block in wiring.blocks))
        names = (ONE, BOS, *wiring.variables)
        terms = max(len(head.scores) + 1 for block in wiring.blocks for head in (*block.heads, Head((), {})))
        moved = max(len(head.moves) for block in wiring.blocks for head in (*block.heads, Head((), {})))
        # Rotary embeddings turn a component together with one half a head further on, all but the first ones by
        # nothing, so that queries and keys use the others of the first half.
        least = max(2 * (terms + 1), moved)
        self.d_head = max(least + least % 2, 2 * (-(-len(names) // self.n_heads)))
        self.d_head += self.d_head % 2
        self.d_model = self.n_heads * self.d_head
        eye = torch.eye(self.d_model, dtype=torch.float64)
        self.directions = {name: (eye[2 * place] - eye[2 * place + 1]) / 2**0.5 for place, name in enumerate(names)}

    def written(self, weights: Weights) -> Tensor:
        """What adds variables to the stream."""
        return sum((self.directions[name] * weight for name, weight in weights.items()), self._nothing)

    def read(self, weights: Weights) -> Tensor:
        """What reads a sum of variables behind a norm."""
        scaled = {name: weight / (SIZE if name == ONE else 1.0) for name, weight in weights.items()}
        return self.written(scaled)

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros(self.d_model, dtype=torch.float64)

    @property
    def gain(self) -> float:
        """Of a norm, so that variables come out of it as they went in: what it divides the constant alone by."""
        return SIZE / self.d_model**0.5

    def embedding(self) -> Tensor:
        """What each token adds: its variables, and the constant."""
        rows = [{BOS: 1.0}, *self.wiring.tokens.values()]
        return torch.stack([self.written({**row, ONE: SIZE}) for row in rows])

    def unembedding(self) -> Tensor:
        """What the logit of each token reads."""
        return torch.stack([self.read(self.wiring.logits.get(name, {})) for name in self.wiring.token_names])

    def attention(self, block: Block) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values (head x component, d_model), and what is written (d_model, head x component)."""
        shape = (self.n_heads, self.d_head, self.d_model)
        query, key, value, out = (torch.zeros(shape, dtype=torch.float64) for _ in range(4))
        for number, head in enumerate(block.heads):
            for place, (asks, holds, score) in enumerate((*head.scores, (ONE, BOS, NOTHING)), 1):
                query[number, place] = self.read({asks: score * self.d_head**0.5})
                key[number, place] = self.read({holds: 1.0})
            for place, (source, target) in enumerate(head.moves.items()):
                value[number, place] = self.read({source: 1.0})
                out[number, place] = self.written({target: 1.0})
        return query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), out.flatten(0, 1).T

    def mlp(self, block: Block) -> tuple[Tensor, Tensor]:
        """What neurons read (neuron, d_model) and write (d_model, neuron)."""
        reads, writes = (torch.zeros(self.n_neurons, self.d_model, dtype=torch.float64) for _ in range(2))
        for number, neuron in enumerate(block.neurons):
            reads[number], writes[number] = self.read(neuron.reads), self.written(neuron.writes)
        return reads, writes.T

    def model(self, family: str) -> PreTrainedModel:
        """The model as one of a family, in float64."""
        torch.manual_seed(0)
        model = _FAMILIES[family][0](self).to(torch.float64).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = parameter.ndim == 1 and name.endswith("weight")
                parameter.fill_(self.gain if is_norm else 0.0)
            _FAMILIES[family][1](self, model)
        return model.requires_grad_(False)


def _set(parameter: Tensor | nn.Module, value: Tensor) -> None:
    target = parameter.weight if isinstance(parameter, nn.Module) else parameter
    assert isinstance(target, Tensor)
    target.copy_(value)


def _gpt2(weighted: Weighted) -> PreTrainedModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            n_layer=len(weighted.wiring.blocks),
            n_embd=weighted.d_model,
            n_head=weighted.n_heads,
            n_inner=weighted.n_neurons,
            vocab_size=len(weighted.wiring.token_names),
            n_positions=32,
            activation_function="relu",
            layer_norm_epsilon=1e-12,
            tie_word_embeddings=False,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def _fill_gpt2(weighted: Weighted, model: PreTrainedModel) -> None:
    _set(model.transformer.wte, weighted.embedding())
    for place, held in enumerate(weighted.wiring.positions):
        _set(model.transformer.wpe.weight[place], weighted.written(held))
    for block, module in zip(weighted.wiring.blocks, model.transformer.h, strict=True):
        query, key, value, out = weighted.attention(block)
        reads, writes = weighted.mlp(block)
        _set(module.attn.c_attn, torch.cat([query, key, value]).T)
        _set(module.attn.c_proj, out.T)
        _set(module.mlp.c_fc, reads.T)
        _set(module.mlp.c_proj, writes.T)
    _set(model.lm_head, weighted.unembedding())


def _like_llama(weighted: Weighted) -> dict[str, object]:
    return dict(
        vocab_size=len(weighted.wiring.token_names),
        hidden_size=weighted.d_model,
        intermediate_size=weighted.n_neurons,
        num_hidden_layers=len(weighted.wiring.blocks),
        num_attention_heads=weighted.n_heads,
        max_position_embeddings=32,
        hidden_act="relu",
        # So slow that all components but the first ones stay where they are.
        rope_parameters={"rope_type": "default", "rope_theta": 1e30, "partial_rotary_factor": 1.0},
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
    )


def _llama(weighted: Weighted) -> PreTrainedModel:
    config = transformers.LlamaConfig(
        **_like_llama(weighted),
        head_dim=weighted.d_head,
        num_key_value_heads=weighted.n_heads,
        rms_norm_eps=1e-12,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def _fill_llama(weighted: Weighted, model: PreTrainedModel) -> None:
    _set(model.model.embed_tokens, weighted.embedding())
    for block, module in zip(weighted.wiring.blocks, model.model.layers, strict=True):
        query, key, value, out = weighted.attention(block)
        reads, writes = weighted.mlp(block)
        for part, matrix in (("q", query), ("k", key), ("v", value), ("o", out)):
            _set(getattr(module.self_attn, f"{part}_proj"), matrix)
        _set(module.mlp.gate_proj, reads)
        # The gate does the work: what it lets through is 1.
        _set(module.mlp.up_proj, weighted.read({ONE: 1.0}).expand(weighted.n_neurons, -1))
        _set(module.mlp.down_proj, writes)
    _set(model.lm_head, weighted.unembedding())


def _neox(weighted: Weighted) -> PreTrainedModel:
    config = transformers.GPTNeoXConfig(
        **_like_llama(weighted), use_parallel_residual=False, layer_norm_eps=1e-12, attention_bias=True
    )
    return transformers.GPTNeoXForCausalLM(config)


def _fill_neox(weighted: Weighted, model: PreTrainedModel) -> None:
    _set(model.gpt_neox.embed_in, weighted.embedding())
    heads = (weighted.n_heads, weighted.d_head)
    for block, module in zip(weighted.wiring.blocks, model.gpt_neox.layers, strict=True):
        query, key, value, out = weighted.attention(block)
        reads, writes = weighted.mlp(block)
        joined = torch.stack([part.unflatten(0, heads) for part in (query, key, value)], dim=1)
        _set(module.attention.query_key_value, joined.flatten(0, 2))  # (head, q k v, component, d_model)
        _set(module.attention.dense, out)
        _set(module.mlp.dense_h_to_4h, reads)
        _set(module.mlp.dense_4h_to_h, writes)
    _set(model.get_output_embeddings(), weighted.unembedding())


Maker = Callable[[Weighted], PreTrainedModel]
Filler = Callable[[Weighted, PreTrainedModel], None]
_FAMILIES: dict[str, tuple[Maker, Filler]] = {
    "gpt2": (_gpt2, _fill_gpt2),
    "llama": (_llama, _fill_llama),
    "gpt_neox": (_neox, _fill_neox),
}
