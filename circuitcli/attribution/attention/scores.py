"""An attention score split into pairs of what its query and its key are made of (as QK attributions do: Kamath et al.
2025, transformer-circuits.pub/2025/attention-qk).

    score = scale * q . k        q = sum over sources u of q_u        score = sum over pairs of scale * q_u . k_v

Query and key are affine in what is written before, in the frozen model on the direct path: patterns of earlier
attention, denominators of norms (those of queries and keys too) and MLPs that no coder writes are constants, and what a
spliced hook point holds is not traced further. So the query of a head at a position is the sum of what each feature,
error and token embedding brings to it, at whatever position it is, and of constants: biases of the projection, of the
norm before it and of decoders, what comes from a BOS token in front, MLPs that no coder writes (``mlp.3``), and the
rest: position embeddings, and biases of earlier blocks. The rotary embedding is part of the linear map. The pairs sum
to the score, before a soft cap.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.attribution.attention.passes import EMBED, DirectPass, direct_pass
from circuitcli.attribution.memory import budget_of, in_batches
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import AttentionScore, HookPoint, NodeId
from circuitcli.models.attention import Attention, Side, attention_of, check_heads
from circuitcli.models.projections import Projection

# Sources that are no nodes: of what stays constant, by where it comes from.
PROJECTION_BIAS, NORM_BIAS, DECODER_BIAS, BOS, REST = "bias", "norm-bias", "decoder-bias", "bos", "rest"
CONSTANTS = (PROJECTION_BIAS, NORM_BIAS, DECODER_BIAS, BOS, REST)
# Activations of a block that a batched pass makes meanwhile.
_MADE = 16
# Products of pairs that are in memory at once.
_PAIRS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Parts:
    """What a query or key is the sum of, as a head compares it: a row for each source."""

    names: tuple[str, ...]
    vectors: Float[Tensor, "source width"]

    @property
    def total(self) -> Float[Tensor, " width"]:
        """The query or key itself."""
        return self.vectors.sum(dim=0)


@dataclass(frozen=True)
class ScoreSplit:
    """A score and the two sides that it is the product of.

    score: before the soft cap. pattern: the share of the query's attention that the key gets.
    """

    asked: AttentionScore
    score: float
    pattern: float
    scale: float
    query: Parts
    key: Parts

    def query_shares(self) -> Float[Tensor, " source"]:
        """What each source of the query brings to the score, with the whole key; they sum to it."""
        return self.query.vectors @ self.key.total * self.scale

    def key_shares(self) -> Float[Tensor, " source"]:
        """What each source of the key brings to the score, with the whole query; they sum to it."""
        return self.key.vectors @ self.query.total * self.scale

    def strongest(self, count: int) -> list[tuple[str, str, float]]:
        """The ``count`` pairs of the largest size: source of the query, source of the key, and their part."""
        best: list[tuple[float, int, int]] = []
        for begin, products in self._products():
            top = products.abs().flatten().topk(min(count, products.numel())).indices
            rows, columns = (top // products.shape[1]).tolist(), (top % products.shape[1]).tolist()
            values = products.flatten()[top].tolist()
            best += [(value, begin + row, column) for value, row, column in zip(values, rows, columns, strict=True)]
            best.sort(key=lambda entry: (-abs(entry[0]), entry[1:]))
            del best[count:]
        return [(self.query.names[row], self.key.names[column], value) for value, row, column in best]

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return len(self.query.names) * len(self.key.names)

    def _products(self) -> Iterator[tuple[int, Float[Tensor, "some source"]]]:
        size = max(1, _PAIRS_AT_ONCE // max(1, len(self.key.names)))
        for begin in range(0, len(self.query.names), size):
            yield begin, self.query.vectors[begin : begin + size] @ self.key.vectors.T * self.scale


def split_score(subject: Subject, asked: AttentionScore) -> ScoreSplit:
    """A score of the clean run of one prompt, split. Raises SettingsError or InputError for one that is not there."""
    check_asked(subject, asked)
    hook = HookPoint(asked.layer, "attn_in")
    with direct_pass(subject, subject.copies(1), opens_constants=True) as run:
        read = run.reads[hook]
        x = read.detach().to(_number_type(read))
        keywords = subject.clean.arguments[asked.layer][1]
        attention = attention_of(subject.adapter, asked.layer, keywords, device=x.device, dtype=x.dtype)
        group = attention.group(asked.head)
        sides = [(attention.query, asked.head, asked.query), (attention.key, group, asked.key)]
        query, key = (_parts(subject, run, read, attention, side) for side in sides)
    scores = attention.scores(x)
    return ScoreSplit(
        asked=asked,
        score=float(scores[0, asked.head, asked.query, asked.key]),
        pattern=float(attention.pattern(scores)[0, asked.head, asked.query, asked.key]),
        scale=attention.scale,
        query=query,
        key=key,
    )


def check_asked(subject: Subject, asked: AttentionScore) -> None:
    """Raise SettingsError for a score that this model or prompt does not have, InputError for heads not known."""
    adapter, n = subject.adapter, len(subject.prompts[0].ids)
    check_heads(adapter)
    adapter.check(HookPoint(min(asked.layer, 2**31), "attn_in"))
    n_heads = int(adapter.text_config.num_attention_heads)
    if asked.head >= n_heads:
        raise SettingsError(f"{asked}: there is no head {asked.head}", hint=f"heads are 0 to {n_heads - 1}")
    if max(asked.query, asked.key) >= n:
        raise SettingsError(
            f"{asked}: there is no position {max(asked.query, asked.key)}", hint=f"positions are 0 to {n - 1}"
        )


def _number_type(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype == torch.float64 else torch.float32


def _parts(subject: Subject, run: DirectPass, read: Tensor, attention: Attention, side: tuple[Side, int, int]) -> Parts:
    """What the query or key of a head at a position is the sum of. side: how it is made, whose, and where."""
    part, head, position = side
    x = read.detach()[0, position].to(part.projection.weight)
    linear = part.linear(x, head=head, position=position)
    made = _Sources(subject, run, read, x, torch.zeros_like(x) if attention.before is None else attention.before.bias)

    def some(rows: Sequence[int]) -> tuple[list[str], Tensor]:
        return made.of(Projection(linear.weight[rows[0] : rows[-1] + 1], linear.bias[rows[0] : rows[-1] + 1]), position)

    pieces = list(in_batches(range(part.width), some, size=made.rows_at_once(part.width)))
    vectors = torch.cat([vectors for _, vectors in pieces], dim=1)
    # What does not get to this position is no source.
    is_source = vectors.ne(0).any(dim=1)
    is_source[-len(CONSTANTS) :] = True
    names = (name for name, there in zip(pieces[0][0], is_source.tolist(), strict=True) if there)
    return Parts(tuple(names), vectors[is_source])


@dataclass(frozen=True)
class _Sources:
    """What the query or key at a position is made of. x: what is read there. before: the bias of the norm before."""

    subject: Subject
    run: DirectPass
    read: Float[Tensor, "1 position d_model"]
    x: Float[Tensor, " d_model"]
    before: Float[Tensor, " d_model"]

    def rows_at_once(self, at_most: int) -> int:
        """Of how many numbers the derivatives by all that is written may be there at once."""
        n_bytes = (len(self.run.leaves) + len(self.run.constants) + _MADE) * self.read.numel() * self.x.element_size()
        return max(1, min(at_most, budget_of(self.subject.adapter) // n_bytes))

    def of(self, linear: Projection, position: int) -> tuple[list[str], Float[Tensor, "source row"]]:
        """What each source brings to some numbers of it; what stays constant comes last."""
        gradients = _gradients(self.run, self.read, linear, position=position)
        names: list[str] = []
        vectors: list[Tensor] = []
        for of_some, vector in _of_nodes(self.subject, self.run, gradients):
            names += of_some
            vectors.append(vector.to(self.x))
        constants = {
            PROJECTION_BIAS: linear.bias,
            NORM_BIAS: linear.weight @ self.before,
            DECODER_BIAS: _of_decoder_biases(self.subject, gradients, like=linear.bias),
            BOS: _of_bos(self.subject, self.run, gradients, like=linear.bias),
        }
        known = sum((vector.sum(dim=0) for vector in vectors), torch.zeros_like(linear.bias)) + sum(constants.values())
        constants[REST] = linear(self.x) - known
        vectors.append(torch.stack([constants[name] for name in CONSTANTS]))
        return [*names, *CONSTANTS], torch.cat(vectors)


def _gradients(
    run: DirectPass, read: Tensor, linear: Projection, *, position: int
) -> dict[HookPoint, Float[Tensor, "width position d_out"]]:
    """Derivative of each number of a query or key by what is written at each place."""
    seeds = read.new_zeros(len(linear.weight), *read.shape)
    seeds[:, 0, position] = linear.weight.to(read)
    opened = {**run.leaves, **run.constants}
    found = torch.autograd.grad(
        read, list(opened.values()), seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    return {
        hook: gradient[:, 0].to(linear.weight)
        for hook, gradient in zip(opened, found, strict=True)
        if gradient is not None
    }


def _of_nodes(
    subject: Subject, run: DirectPass, gradients: dict[HookPoint, Tensor]
) -> Iterator[tuple[list[str], Float[Tensor, "some width"]]]:
    """Names of nodes and what they bring: features of each coder, errors of each written hook point, tokens; and MLPs
    that are constant."""
    first = subject.first
    for hook, coder in subject.coders.items():
        places = [place for place in coder.writes if place in gradients]
        codes, scale = subject.codes[hook][0], subject.scale(hook)
        for position in range(len(codes)) if places else ():
            indices = codes[position].nonzero()[:, 0]
            brought = sum(gradients[place][:, first + position] @ coder.decoder(place)[indices].T for place in places)
            amounts = codes[position, indices] * (1.0 if scale is None else scale[0, position])
            assert isinstance(brought, Tensor)
            names = [str(NodeId(hook, index, first + position)) for index in indices.tolist()]
            yield names, (brought * amounts).T
    for place, gradient in gradients.items():
        if place in subject.coders.written:
            errors = subject.errors[place][0]
            yield _error_names(place, range(first, first + len(errors))), _at_each(gradient[:, first:], errors)
        elif place in run.constants:
            yield [str(place)], _at_each(gradient, run.constants[place].detach()[0]).sum(dim=0, keepdim=True)
        else:
            written = run.leaves[place].detach()[0, first:].to(gradient)
            yield _token_names(range(first, first + len(written))), _at_each(gradient[:, first:], written)


def _error_names(place: HookPoint, positions: Sequence[int]) -> list[str]:
    return [str(NodeId(place, None, position)) for position in positions]


def _token_names(positions: Sequence[int]) -> list[str]:
    """Names of token embeddings, which are sources where no coder explains them."""
    return [f"{EMBED}/token@{position}" for position in positions]


def _at_each(
    gradient: Float[Tensor, "width position d_out"], written: Float[Tensor, "position d_out"]
) -> Float[Tensor, "position width"]:
    return torch.einsum("wpd,pd->pw", gradient, written.to(gradient))


def _of_decoder_biases(subject: Subject, gradients: dict[HookPoint, Tensor], *, like: Tensor) -> Tensor:
    """What biases of decoders bring, and means that coders take off and put back."""
    total = torch.zeros_like(like)
    for place in gradients:
        for coder in subject.coders.writers(place):
            codes = torch.zeros_like(subject.codes[coder.hook][0, :, :1]).expand(-1, coder.d_sae)
            frame = subject.coded.frames[coder.hook]
            of_text = None if frame is None else type(frame)(*(part[0] for part in frame))
            bias = coder.decode(codes, of_text, hook=place)
            total = total + _at_each(gradients[place][:, subject.first :], bias).sum(dim=0).to(like)
    return total


def _of_bos(subject: Subject, run: DirectPass, gradients: dict[HookPoint, Tensor], *, like: Tensor) -> Tensor:
    """What comes from positions that carry no nodes."""
    total = torch.zeros_like(like)
    for place in run.leaves.keys() & gradients.keys():
        gradient, written = gradients[place], run.leaves[place].detach()[0, : subject.first]
        total = total + _at_each(gradient[:, : subject.first], written).sum(dim=0).to(like)
    return total
