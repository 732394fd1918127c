"""Two hops: what a token is linked to is looked up, moved to the end, and what that is linked to is looked up there."""

from .planted import Plan, Planted
from .wiring import FOUND, Block, Head, Neuron, Wiring


def build() -> Planted:
    """A is linked to midA, and that to endA; a Llama."""
    first = tuple(Neuron({name: 1.0}, {f"mid{name}": 1.0, "known": 1.0}) for name in "AB")
    second = tuple(Neuron({f"got{name}": 1.0}, {f"end{name}": 1.0}) for name in "AB")
    moves = Head((("ask", "known", FOUND),), {f"mid{name}": f"got{name}" for name in "AB"})
    wiring = Wiring(
        tokens={"A": {"A": 1.0}, "B": {"B": 1.0}, "x": {"x": 1.0}, "?": {"ask": 1.0}, "a": {}, "b": {}},
        blocks=(Block(neurons=(*first, Neuron({"x": 1.0}, {"idle": 1.0}))), Block(heads=(moves,), neurons=second)),
        logits={"a": {"endA": 5.0}, "b": {"endB": 5.0}},
    )
    hops = (
        "resid_pre.0/{0}@2 > mlp.0/mid{0}@2 > resid.0/mid{0}@2 > attn.1/got{0}@3 > mlp.1/end{0}@3 > "
        "resid.1/end{0}@3 > output"
    )
    return Plan(
        "two-hop",
        wiring,
        clean=("x", "A", "?"),
        other=("x", "B", "?"),
        target="a",
        foil="b",
        chains={
            "zero": (
                hops.format("A"),
                "resid_pre.0/A@2 > mlp.0/known@2 > resid.0/known@2 > attn.1/gotA@3",
                "resid_pre.0/ask@3 > resid.0/ask@3 > attn.1/gotA@3",
            ),
            "counterfactual": (hops.format("A"), hops.format("B")),
        },
        family="llama",
    ).build()
