"""A gate: a head that a token turns off, so that what it would copy stays where it is."""

from .planted import Plan, Planted
from .wiring import FOUND, Block, Head, Neuron, Wiring


def build() -> Planted:
    """``so A ?`` is followed by A, ``not A ?`` by the usual answer: what ``not`` writes keeps the head from A."""
    notices = Head((("ask", "not", FOUND),), {"not": "off"})
    copies = Head((("ask", "name", FOUND), ("off", "name", -FOUND)), {"A": "outA"})
    wiring = Wiring(
        tokens={
            "not": {"not": 1.0},
            "so": {"so": 1.0},
            "A": {"A": 1.0, "name": 1.0},
            "?": {"ask": 1.0},
            "usual": {},
        },
        blocks=(Block(heads=(notices,), neurons=(Neuron({"so": 1.0}, {"idle": 1.0}),)), Block(heads=(copies,))),
        logits={"usual": {"ask": 3.0}, "A": {"outA": 6.0}},
    )
    usual = "resid_pre.0/ask@3 > resid.0/ask@3 > resid.1/ask@3 > output"
    off = "resid_pre.0/not@1 > attn.0/off@3 > resid.0/off@3"
    return Plan(
        "gated",
        wiring,
        clean=("not", "A", "?"),
        other=("so", "A", "?"),
        target="usual",
        foil="A",
        chains={
            "zero": (usual,),
            "counterfactual": (off + " > attn.1/outA@3 > resid.1/outA@3 > output",),
        },
        # What it holds down is silent without nodes too.
        unseen={"zero": ("resid_pre.0/not@1", "attn.0/off@3", "resid.0/off@3")},
    ).build()
