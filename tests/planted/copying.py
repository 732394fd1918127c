"""Copying: the last token asks for a name, a head finds it and repeats it."""

from .planted import Plan, Planted
from .wiring import FOUND, Block, Head, Neuron, Wiring


def build() -> Planted:
    """``A x y ?`` is followed by A, ``B x y ?`` by B."""
    names = Neuron({"A": 1.0, "B": 1.0}, {"name": 1.0})
    idle = Neuron({"x": 1.0, "y": 1.0}, {"idle": 1.0})
    copies = Head((("ask", "name", FOUND),), {"A": "outA", "B": "outB"})
    wiring = Wiring(
        tokens={"A": {"A": 1.0}, "B": {"B": 1.0}, "x": {"x": 1.0}, "y": {"y": 1.0}, "?": {"ask": 1.0}},
        blocks=(Block(neurons=(names, idle)), Block(heads=(copies,))),
        logits={"A": {"outA": 5.0}, "B": {"outB": 5.0}},
    )
    ends = "attn.1/out{0}@4 > resid.1/out{0}@4 > output"
    moved = "resid_pre.0/{0}@1 > resid.0/{0}@1 > " + ends
    return Plan(
        "copying",
        wiring,
        clean=("A", "x", "y", "?"),
        other=("B", "x", "y", "?"),
        target="A",
        foil="B",
        chains={
            "zero": (
                moved.format("A"),
                "resid_pre.0/A@1 > mlp.0/name@1 > resid.0/name@1 > attn.1/outA@4",
                "resid_pre.0/ask@4 > resid.0/ask@4 > attn.1/outA@4",
            ),
            # Both are names, and both are asked for.
            "counterfactual": (moved.format("A"), moved.format("B")),
        },
    ).build()
