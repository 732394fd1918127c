"""A cross-layer transcoder that takes two hops as one: it reconstructs everything, and its graph is wrong.

What the last token holds makes ``mid``, and that makes ``end`` one layer later. The honest coders say so. The short cut
reads the token and writes ``mid`` and ``end`` both, so that nothing is left for the second layer's coder to say. The
second layer bends down behind the value that ``mid`` has in the text: twice as much of it does not make twice as much
of ``end``, which the short cut cannot know.
"""

from collections.abc import Mapping

import torch

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.base import SaeConfig, SparseCoder
from circuitcli.saes.relu import ReluSae

from .planted import Plan, Planted
from .wiring import ONE, Block, Neuron, Weighted, Wiring

# What each of four causes is worth to the output, and how far its second hop bends. A cause that is doubled moves the
# output by worth * (1 - bend) through the short cut: the more it is said to do, the less it does.
WORTH = (1.0, 2.0, 3.0, 4.0)
BEND = (0.0, 1.0, 5 / 3, 9 / 4)
CAUSES = range(len(WORTH))
READS, WRITES = (HookPoint(0, "mlp_in"), HookPoint(1, "mlp_in")), (HookPoint(0, "mlp"), HookPoint(1, "mlp"))


def _wiring() -> Wiring:
    first = tuple(Neuron({f"A{cause}": 1.0}, {f"mid{cause}": 1.0}) for cause in CAUSES)
    second = tuple(
        neuron
        for cause in CAUSES
        for neuron in (
            Neuron({f"mid{cause}": 1.0}, {f"end{cause}": 1.0}),
            Neuron({f"mid{cause}": 1.0, ONE: -1.0}, {f"end{cause}": -1.0 - BEND[cause]}),
        )
    )
    return Wiring(
        tokens={"x": {"x": 1.0}, "A": {f"A{cause}": 1.0 for cause in CAUSES}, "B": {"other": 1.0}, "yes": {}, "no": {}},
        blocks=(
            Block(neurons=(*first, Neuron({"other": 1.0}, {"mid-other": 1.0}))),
            Block(neurons=(*second, Neuron({"mid-other": 1.0}, {"end-other": 1.0}))),
        ),
        logits={"yes": {f"end{cause}": WORTH[cause] for cause in CAUSES}, "no": {"end-other": 5.0}},
    )


def _coder(weighted: Weighted, layer: int, writes: Mapping[str, tuple[str | None, ...]]) -> SparseCoder:
    """A layer of a CLT whose features, one for each variable, write what is named at each later layer."""
    names, places = weighted.wiring.variables, WRITES[layer:]
    config = SaeConfig(
        READS[layer], weighted.d_model, len(names), subtract_decoder_bias=False, target=places[0], further=places[1:]
    )
    coder = ReluSae(config).to(torch.float64)
    with torch.no_grad():
        for name, targets in writes.items():
            coder.W_enc[:, names.index(name)] = weighted.directions[name]
            for place, target in zip(places, targets, strict=True):
                if target is not None:
                    coder.decoder(place)[names.index(name)] = weighted.directions[target]
    return coder.eval().requires_grad_(False)


def _causes() -> list[tuple[str, str, str]]:
    return [*((f"A{cause}", f"mid{cause}", f"end{cause}") for cause in CAUSES), ("other", "mid-other", "end-other")]


def _plan(name: str, path: str) -> Plan:
    kinds = {"zero": _causes()[:-1], "counterfactual": _causes()}
    return Plan(
        name,
        _wiring(),
        clean=("x", "A"),
        other=("x", "B"),
        target="yes",
        foil="no",
        chains={kind: [path.format(*names) for names in causes] for kind, causes in kinds.items()},
    )


def build_honest() -> Planted:
    """Each layer's coder says what its MLP does."""
    plan = _plan("clt", "mlp_in.0/{0}@2 > mlp_in.1/{1}@2 > output")
    weighted = Weighted(plan.wiring)
    return plan.build(
        [
            _coder(weighted, 0, {cause: (mid, None) for cause, mid, _ in _causes()}),
            _coder(weighted, 1, {mid: (end,) for _, mid, end in _causes()}),
        ]
    )


def build_short() -> Planted:
    """The first layer's coder does what both MLPs do; the truth is that of its graph, not that of the model."""
    plan = _plan("clt-shortcut", "mlp_in.0/{0}@2 > output")
    weighted = Weighted(plan.wiring)
    return plan.build(
        [
            _coder(weighted, 0, {cause: (mid, end) for cause, mid, end in _causes()}),
            _coder(weighted, 1, {"x": (None,)}),
        ]
    )
