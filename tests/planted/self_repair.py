"""Self-repair: a backup that is silent as long as what it stands in for is there, and does the same when it is not."""

from .planted import Plan, Planted
from .wiring import Block, Neuron, Wiring


def build() -> Planted:
    """A makes ``main``; without it A makes ``backup`` one layer later."""
    main = Neuron({"A": 1.0}, {"main": 1.0})
    backup = Neuron({"A": 1.0, "main": -2.0}, {"backup": 1.0})
    wiring = Wiring(
        tokens={"A": {"A": 1.0}, "B": {"B": 1.0}, "x": {"x": 1.0}, "yes": {}, "no": {}},
        blocks=(
            Block(neurons=(main, Neuron({"x": 1.0}, {"idle": 1.0}))),
            Block(neurons=(backup, Neuron({"B": 1.0}, {"other": 1.0}))),
        ),
        logits={"yes": {"main": 4.0, "backup": 4.0}, "no": {"other": 4.0}},
    )
    main_path = "resid_pre.0/A@2 > mlp.0/main@2 > resid.0/main@2 > resid.1/main@2 > output"
    return Plan(
        "self-repair",
        wiring,
        clean=("x", "A"),
        other=("x", "B"),
        target="yes",
        foil="no",
        chains={
            "zero": (main_path,),
            "counterfactual": (
                main_path,
                "resid_pre.0/B@2 > resid.0/B@2 > mlp.1/other@2 > resid.1/other@2 > output",
            ),
        },
    ).build()
