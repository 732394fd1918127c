"""What lies between two hook points of a prompt: features of the earlier SAE in, pre-activations of the later one out.

Between ``resid_mid.l`` and ``resid.l``, and between ``mlp_in.l`` and ``mlp.l``, no token sees another. There the MLP's
own weights take the place of a run of the block (`ByToken`), and what is asked for is computed for each token apart:
a later feature depends on the few earlier features that are active at its token.
"""

from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from circuitcli.attribution.metrics import log_softmax
from circuitcli.attribution.subject import Subject
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint
from circuitcli.models.mlp import Mlp, mlp_between
from circuitcli.models.partial import first_block
from circuitcli.models.taps import Callback, leaf
from circuitcli.saes.base import SparseCoder

# Pairs of sites of one block between which no token sees another.
TOKENWISE = (("resid_mid", "resid"), ("mlp_in", "mlp"))
# Of the later activation, by how much the MLP's weights may miss it where they stand for the block.
_LARGEST_GAP = 1e-3
# Rows of an MLP at once.
_ROWS = 8192


class Between:
    """A prompt, and what lies between two hook points of it, as runs of the blocks."""

    def __init__(self, subject: Subject, source: HookPoint, target: HookPoint, batch_size: int) -> None:
        self.subject, self.source, self.target, self.batch_size = subject, source, target, batch_size
        self.coders = (subject.coders[source], subject.coders[target])
        self._edges: Bool[Tensor, "unit feature"] | None = None
        self._having, self._pre = torch.zeros(0, dtype=torch.bool), torch.zeros(0)

    @cached_property
    def codes(self) -> Float[Tensor, "position d_source"]:
        """Codes of the earlier SAE in the clean run."""
        return self.subject.codes[self.source][0]

    @cached_property
    def full(self) -> Float[Tensor, "position d_target"]:
        """Later codes with all edges: of the run in which the earlier SAE stands for the activation."""
        with torch.no_grad():
            x = self.coders[0].decode(self.subject.codes[self.source], self.subject.coded.frames[self.source])
            return self.coders[1].encode(self.arriving(x))[0]

    @cached_property
    def is_active(self) -> tuple[Bool[Tensor, " d_source"], Bool[Tensor, " d_target"]]:
        """Features of both that are active at some position, on the CPU."""
        return (self.codes != 0).any(dim=0).cpu(), (self.full != 0).any(dim=0).cpu()

    def decoded(
        self, codes: Float[Tensor, "row position unit"], units: Int[Tensor, " unit"] | slice = slice(None)
    ) -> Float[Tensor, "row position d_model"]:
        """What the earlier SAE makes of some features' codes, all others being zero."""
        coder, frame = self.coders[0], self.subject.coded.frames[self.source]
        x = codes @ coder.decoder(self.source)[units] + coder.decoder_bias(self.source)
        return x if frame is None else x * frame.scale + frame.mean

    def by_code(self, gradient: Float[Tensor, "row d_model"], position: Int[Tensor, " row"]) -> Tensor:
        """Derivatives by the earlier features' codes, from those by the activation at these positions."""
        scale = self.subject.scale(self.source)
        gradient = gradient if scale is None else gradient * scale[0][position]
        return gradient @ self.coders[0].decoder(self.source).T

    def arriving(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_target"]:
        """What arrives at the later hook point, where the earlier one is x."""
        seen: list[Tensor] = []
        subject, first = self.subject, self.subject.first

        def see(whole: Tensor) -> None:
            seen.append(whole[:, first:])

        taps: dict[HookPoint, Callback] = {self.source: partial(placed, x, first), self.target: see}
        subject.run(taps, texts=subject.copies(len(x)), start=first_block(self.source), stop=self.target.layer + 1)
        return seen[0].to(self.coders[1].W_enc)

    def gradients(
        self,
        x: Float[Tensor, "1 position d_model"],
        features: Int[Tensor, " feature"],
        weights: Float[Tensor, "feature position"],
    ) -> Float[Tensor, "feature position d_model"]:
        """Derivatives by the earlier activation, where it is x, of later features' pre-activations, each summed over
        the positions with its weights: one pass forwards, and backwards one for all of them together."""
        with torch.enable_grad():
            x = leaf(x)
            pre = columns_of(self.coders[1], self.arriving(x), features)[0]  # (position, feature)
            sums = (pre.T * weights).sum(dim=1)
        at_once = torch.eye(len(sums), dtype=sums.dtype, device=sums.device)
        return torch.autograd.grad(sums, x, at_once, is_grads_batched=True)[0][:, 0]

    def pre_with(
        self, edges: Bool[Tensor, "unit feature"], units: Int[Tensor, " unit"], features: Int[Tensor, " feature"]
    ) -> Float[Tensor, "position d_target"]:
        """Later pre-activations with these edges from ``units`` to ``features``; 0 of features without one.

        What depends on other edges than when this was asked for last is run again, and nothing else.
        """
        here = self.is_active[0][units].nonzero()[:, 0]
        own, having = edges[here], edges.any(dim=0)
        if self._edges is None:
            self._pre = self.coders[1].W_enc.new_zeros(self.subject.n_spliced, len(features))
            changed = having
        else:
            changed = (own != self._edges).any(dim=0) | (having != self._having)
        self._edges, self._having = own, having
        self._pre[:, (changed & ~having).to(self._pre.device)] = 0
        again = (changed & having).nonzero()[:, 0]
        if len(again):
            self._pre[:, again] = self._run_with(own[:, again], units[here], features[again])
        pre = self._pre.new_zeros(len(self._pre), self.coders[1].d_sae)
        pre[:, features] = self._pre
        return pre

    def _run_with(
        self, edges: Bool[Tensor, "unit feature"], units: Int[Tensor, " unit"], features: Int[Tensor, " feature"]
    ) -> Float[Tensor, "position feature"]:
        """Pre-activations of features with such edges; those of the same earlier features are of one run."""
        codes = self.codes[None, :, units]
        sets, which = edges.T.unique(dim=0, return_inverse=True)  # (set, unit), (feature,)
        pre = codes.new_zeros(codes.shape[1], len(features))
        for begin in range(0, len(sets), self.batch_size):
            masks = sets[begin : begin + self.batch_size].to(codes.device)
            x = self.arriving(self.decoded(codes * masks[:, None], units))
            rows = ((which >= begin) & (which < begin + len(masks))).nonzero()[:, 0]
            for some in rows.split(self.batch_size):
                found = columns(self.coders[1], x[(which[some] - begin).to(x.device)], features[some])
                pre[:, some] = found.T
        return pre

    def divergences(
        self, codes: Float[Tensor, "position d_target"], all_codes: Float[Tensor, "position d_target"], smooth: float
    ) -> tuple[float, float]:
        """The mean over tokens of ``KL(model || run)`` and of ``KL(run with all codes || run)``; in a run the later
        hook point is what its SAE makes of the codes. smooth: added to both probabilities within the logarithm."""
        places = slice(self.subject.first, None)
        run = log_softmax(self.logits(codes))
        whole = (self.subject.clean_logits(places), self.logits(all_codes))
        first, second = (divergence(log_softmax(each), run, smooth=smooth) for each in whole)
        return first, second

    def logits(self, codes: Float[Tensor, "position d_target"]) -> Float[Tensor, "1 position vocab"]:
        """Of the run in which the later hook point is what its SAE makes of the codes."""
        subject = self.subject
        x = self.coders[1].decode(codes[None], subject.coded.frames[self.target])
        taps: dict[HookPoint, Callback] = {self.target: partial(placed, x, subject.first)}
        return subject.logits(taps, positions=slice(subject.first, None))


class ByToken(Between):
    """What lies between where no token sees another: an MLP, with or without what goes around it."""

    def __init__(self, subject: Subject, source: HookPoint, target: HookPoint, batch_size: int, mlp: Mlp) -> None:
        super().__init__(subject, source, target, batch_size)
        self.mlp = mlp

    def arriving(self, x: Float[Tensor, "row position d_model"]) -> Float[Tensor, "row position d_target"]:
        """See `Between`."""
        rows = x.flatten(0, 1).split(_ROWS)
        return torch.cat([self.mlp(some) for some in rows]).unflatten(0, x.shape[:2])

    def gradients(
        self,
        x: Float[Tensor, "1 position d_model"],
        features: Int[Tensor, " feature"],
        weights: Float[Tensor, "feature position"],
    ) -> Float[Tensor, "feature position d_model"]:
        """See `Between`: a row for each feature and position whose weight is not zero."""
        result = x.new_zeros(*weights.shape, x.shape[2])
        for some in weights.nonzero().split(_ROWS):
            feature, position = some[:, 0], some[:, 1]
            with torch.enable_grad():
                at = leaf(x[0, position])
                pre = columns(self.coders[1], self.mlp(at)[:, None], features[feature])[:, 0]
                total = (pre * weights[feature, position]).sum()
            result[feature, position] = torch.autograd.grad(total, at)[0]
        return result

    def _run_with(
        self, edges: Bool[Tensor, "unit feature"], units: Int[Tensor, " unit"], features: Int[Tensor, " feature"]
    ) -> Float[Tensor, "position feature"]:
        """See `Between`: what depends on the same of the earlier features that are active at a token is one row."""
        codes, edges = self.codes[:, units], edges.to(self.codes.device)
        one, which = _same(codes != 0, edges)
        coder, frame = self.coders[0], self.subject.coded.frames[self.source]
        arriving = []
        for some in one.split(_ROWS):
            at, feature = some // len(features), some % len(features)
            kept = codes[at] * edges[:, feature].T
            x = kept @ coder.decoder(self.source)[units] + coder.decoder_bias(self.source)
            x = x if frame is None else x * frame.scale[0][at] + frame.mean[0][at]
            arriving.append(self.mlp(x))
        y, pre = torch.cat(arriving), codes.new_zeros(which.shape)
        rows, index = which.flatten(), torch.arange(len(features), device=codes.device).repeat(len(codes))
        for some in torch.arange(len(rows), device=codes.device).split(_ROWS):
            chosen = features.to(codes.device)[index[some]]
            pre.view(-1)[some] = columns(self.coders[1], y[rows[some]][:, None], chosen)[:, 0]
        return pre


def _same(
    active: Bool[Tensor, "position unit"], edges: Bool[Tensor, "unit feature"]
) -> tuple[Int[Tensor, " row"], Int[Tensor, "position feature"]]:
    """Of all pairs of a position and a feature, by number, one for each set of units that are active at the position
    and have an edge to the feature; and which of these each pair has.

    Sets are told apart by the sum of random whole numbers of their units, which double precision holds exactly.
    """
    largest = int(active.sum(dim=1).max()) if active.numel() else 1
    generator = torch.Generator().manual_seed(0)
    names = torch.randint(2**53 // max(1, largest), (edges.shape[0],), generator=generator).to(active.device)
    sums = (active * names.double()) @ edges.double()  # (position, feature)
    _, which = sums.unique(return_inverse=True)
    position = torch.arange(len(active), device=active.device)[:, None]
    _, which = (which * len(active) + position).unique(return_inverse=True)
    one = torch.full((int(which.max()) + 1,), which.numel(), device=active.device)
    one.scatter_reduce_(0, which.flatten(), torch.arange(which.numel(), device=active.device), "amin")
    return one, which


def between(subject: Subject, source: HookPoint, target: HookPoint, batch_size: int) -> Between:
    """What lies between two hook points: by token, where no token sees another and the parts of the MLP are known."""
    is_plain = type(subject.coders[target]).pre_activations is SparseCoder.pre_activations
    if source.layer == target.layer and (source.site, target.site) in TOKENWISE and is_plain:
        like = subject.coders[target].W_enc
        try:
            mlp = mlp_between(subject.adapter, source, target, device=like.device, dtype=like.dtype)
        except SettingsError:
            return Between(subject, source, target, batch_size)
        x, y = (subject.clean.activations[hook][0].to(like) for hook in (source, target))
        if float((mlp(x) - y).norm()) <= _LARGEST_GAP * float(y.norm()):
            return ByToken(subject, source, target, batch_size, mlp)
    return Between(subject, source, target, batch_size)


def divergence(
    clean: Float[Tensor, "1 position vocab"], run: Float[Tensor, "1 position vocab"], *, smooth: float = 0.0
) -> float:
    """The mean over positions of KL(clean || run) of logarithms of probabilities, in nats."""
    if smooth:
        ratio = ((clean.exp() + smooth) / (run.exp() + smooth)).log()
    else:
        ratio = clean - run
    return float((clean.exp() * ratio).sum(dim=-1).mean())


def placed(x: Tensor, first: int, whole: Tensor) -> Tensor:
    """The activation with x at the spliced positions."""
    return torch.cat([whole[:, :first], x.to(whole)], dim=1)


def columns(
    coder: SparseCoder, x: Float[Tensor, "row position d_in"], features: Int[Tensor, " row"]
) -> Float[Tensor, "row position"]:
    """Of each row the pre-activation of one feature, by one column of the encoder, where that is all that it takes."""
    if type(coder).pre_activations is SparseCoder.pre_activations:
        return torch.einsum("rpd,dr->rp", coder.centred(x), coder.W_enc[:, features]) + coder.b_enc[features][:, None]
    index = features.to(x.device)[:, None, None].expand(-1, x.shape[1], 1)
    return coder.pre_activations(x).gather(2, index)[..., 0]


def columns_of(
    coder: SparseCoder, x: Float[Tensor, "row position d_in"], features: Int[Tensor, " feature"]
) -> Float[Tensor, "row position feature"]:
    """Pre-activations of some features, the same for all rows."""
    if type(coder).pre_activations is SparseCoder.pre_activations:
        return coder.centred(x) @ coder.W_enc[:, features] + coder.b_enc[features]
    return coder.pre_activations(x)[..., features]
