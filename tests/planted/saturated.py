"""Saturated units: they rise within a short stretch of what they read, which integrated gradients meet once or never,
and are flat where the model runs."""

from .planted import Plan, Planted
from .wiring import FOUND, ONE, Block, Head, Neuron, Wiring, step


def build() -> Planted:
    """``steep`` rises by all of its range within one of ten steps of a path from 0: their sum is 2.7 times too much."""
    return _with("saturated-steep", {"gotA": 27.0, ONE: -1.0}, {"gotB": 27.0, ONE: -1.0})


def build_blind() -> Planted:
    """It rises between 0 and the first of ten steps: none of them sees it."""
    return _with("saturated-blind", {"gotA": 30.0}, {"gotB": 30.0})


def _with(name: str, of_a: dict[str, float], of_b: dict[str, float]) -> Planted:
    gathers = Head((("ask", "name", FOUND),), {"A": "gotA", "B": "gotB"})
    idle = Neuron({"x": 1.0}, {"idle": 1.0})
    wiring = Wiring(
        tokens={
            "A": {"A": 1.0, "name": 1.0},
            "B": {"B": 1.0, "name": 1.0},
            "x": {"x": 1.0},
            "?": {"ask": 1.0},
            "yes": {},
            "no": {},
        },
        blocks=(
            Block(heads=(gathers,), neurons=(idle,)),
            Block(neurons=(*step(of_a, {"unitA": 1.0}), *step(of_b, {"unitB": 1.0}))),
        ),
        logits={"yes": {"unitA": 4.0}, "no": {"unitB": 4.0}},
    )
    path = "resid_pre.0/{0}@1 > attn.0/got{0}@3 > resid.0/got{0}@3 > mlp.1/unit{0}@3 > resid.1/unit{0}@3 > output"
    return Plan(
        name,
        wiring,
        clean=("A", "x", "?"),
        other=("B", "x", "?"),
        target="yes",
        foil="no",
        chains={
            "zero": (
                path.format("A"),
                "resid_pre.0/name@1 > attn.0/gotA@3",
                "resid_pre.0/ask@3 > attn.0/gotA@3",
            ),
            "counterfactual": (path.format("A"), path.format("B")),
        },
    ).build()
