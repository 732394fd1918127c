"""Cancelling paths: two nodes of one cause whose effects on the output take each other away, beside one that stays."""

from .planted import Plan, Planted
from .wiring import FOUND, Block, Head, Neuron, Wiring


def build() -> Planted:
    """x decides; what the last token holds makes both ``plus`` and ``minus``, which read 5 and -5."""
    gathers = Head((("cause", "near", FOUND),), {"x": "gotx", "y": "goty"})
    wiring = Wiring(
        tokens={
            "x": {"x": 1.0, "near": 1.0},
            "y": {"y": 1.0, "near": 1.0},
            "A": {"A": 1.0, "cause": 1.0},
            "B": {"B": 1.0, "cause": 1.0},
            "yes": {},
            "no": {},
        },
        blocks=(
            Block(heads=(gathers,), neurons=(Neuron({"A": 1.0}, {"mid": 1.0}), Neuron({"B": 1.0}, {"idle": 1.0}))),
            Block(neurons=(Neuron({"mid": 1.0}, {"plus": 1.0}), Neuron({"mid": 1.0}, {"minus": 1.0}))),
        ),
        logits={"yes": {"gotx": 3.0, "plus": 5.0, "minus": -5.0}, "no": {"goty": 3.0}},
    )
    kept = "resid_pre.0/{0}@1 > attn.0/got{0}@2 > resid.0/got{0}@2 > resid.1/got{0}@2 > output"
    both = tuple(
        f"resid_pre.0/A@2 > mlp.0/mid@2 > resid.0/mid@2 > mlp.1/{name}@2 > resid.1/{name}@2 > output"
        for name in ("plus", "minus")
    )
    looked = tuple(f"resid_pre.0/{name} > attn.0/gotx@2" for name in ("near@1", "cause@2"))
    return Plan(
        "cancelling",
        wiring,
        clean=("x", "A"),
        other=("y", "B"),
        target="yes",
        foil="no",
        chains={
            "zero": (kept.format("x"), *both, *looked),
            "counterfactual": (kept.format("x"), kept.format("y"), *both),
        },
    ).build()
