"""Boolean logic of several hops: ``(a and b) xor (c or d)``, of bits that four heads bring to the end."""

from .planted import Plan, Planted
from .wiring import FOUND, ONE, Block, Head, Neuron, Wiring, step


def build() -> Planted:
    """``a b - -`` is true, ``- b - -`` is not; a GPT-NeoX."""
    slots = "abcd"
    tokens = {name: {name: 1.0, f"slot{name}": 1.0} for name in slots}
    tokens |= {f"not-{name}": {f"slot{name}": 1.0} for name in slots}
    gathers = tuple(Head((("ask", f"slot{name}", FOUND),), {name: f"got{name}"}) for name in slots)
    both = Neuron({"gota": 1.0, "gotb": 1.0, ONE: -1.0}, {"and": 1.0})
    either = step({"gotc": 1.0, "gotd": 1.0}, {"or": 1.0})
    differ = (
        Neuron({"and": 1.0, "or": 1.0}, {"xor": 1.0}),
        Neuron({"and": 1.0, "or": 1.0, ONE: -1.0}, {"xor": -2.0}),
    )
    wiring = Wiring(
        tokens={**tokens, "=": {"ask": 1.0}, "yes": {}, "no": {}},
        blocks=(Block(heads=gathers, neurons=(both, *either)), Block(neurons=differ)),
        logits={"yes": {"xor": 5.0}},
    )
    ends = "attn.0/got{0}@5 > mlp.0/and@5 > resid.0/and@5 > mlp.1/xor@5 > resid.1/xor@5 > output"
    return Plan(
        "boolean",
        wiring,
        clean=("a", "b", "not-c", "not-d", "="),
        other=("not-a", "b", "not-c", "not-d", "="),
        target="yes",
        foil="no",
        chains={
            "zero": tuple(
                f"resid_pre.0/{source} > {ends.format(name)}"
                for name, place in (("a", 1), ("b", 2))
                for source in (f"{name}@{place}", f"slot{name}@{place}", "ask@5")
            ),
            "counterfactual": ("resid_pre.0/a@1 > " + ends.format("a"),),
        },
        family="gpt_neox",
    ).build()
