"""A threshold, as in greater-than: each unit is on from its own number on and takes that number away."""

from .planted import Plan, Planted
from .wiring import FOUND, ONE, Block, Head, Neuron, Wiring, step

NUMBERS = range(1, 9)


def build() -> Planted:
    """Behind ``4`` comes 6 rather than 2, both of which ``7`` rules out: its unit 6 is silent in the clean run."""
    units = tuple(
        neuron for number in NUMBERS for neuron in step({"got": 10.0, ONE: 1.0 - number}, {f"from{number}": 1.0})
    )
    moves = Head((("ask", "number", FOUND),), {"size": "got"})
    tokens = {str(number): {"size": number / 10, "number": 1.0} for number in NUMBERS}
    wiring = Wiring(
        tokens={**tokens, "x": {"x": 1.0}, ">": {"ask": 1.0}},
        blocks=(Block(neurons=(Neuron({"x": 1.0}, {"idle": 1.0}),)), Block(heads=(moves,), neurons=units)),
        logits={str(number): {f"from{number}": -8.0} for number in NUMBERS},
    )
    path = "resid_pre.0/size@1 > resid.0/size@1 > attn.1/got@3 > mlp.1/from{0}@3 > resid.1/from{0}@3 > output"
    looked = tuple(f"resid_pre.0/{name} > resid.0/{name} > attn.1/got@3" for name in ("number@1", "ask@3"))
    return Plan(
        "greater-than",
        wiring,
        clean=("4", "x", ">"),
        other=("7", "x", ">"),
        target="6",
        foil="2",
        chains={"zero": (path.format(2), *looked), "counterfactual": (path.format(6),)},
    ).build()
