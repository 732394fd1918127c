"""Induction: a head writes at each token which one came before it, a later one finds where the last token came before
and repeats what followed it there."""

from .planted import Plan, Planted
from .wiring import FOUND, Block, Head, Wiring

TOKENS = "ABCD"
LENGTH = 6


def _wiring() -> Wiring:
    before = Head(
        tuple((f"at{place}", f"at{place - 1}", FOUND) for place in range(2, LENGTH)),
        {name: f"prev{name}" for name in TOKENS},
    )
    repeats = Head(tuple((name, f"prev{name}", FOUND) for name in TOKENS), {name: f"out{name}" for name in TOKENS})
    return Wiring(
        tokens={name: {name: 1.0} for name in TOKENS},
        positions=({}, *({f"at{place}": 1.0} for place in range(1, LENGTH))),
        blocks=(Block(heads=(before,)), Block(heads=(repeats,))),
        logits={name: {f"out{name}": 5.0} for name in TOKENS},
    )


def build() -> Planted:
    """``A B C A`` is followed by B, ``A D C A`` by D."""
    moved = "resid_pre.0/{0}@2 > resid.0/{0}@2 > attn.1/out{0}@4 > resid.1/out{0}@4 > output"
    found = "resid_pre.0/{0} > attn.0/prevA@2 > resid.0/prevA@2 > attn.1/outB@4"
    return Plan(
        "induction",
        _wiring(),
        clean="ABCA",
        other="ADCA",
        target="B",
        foil="D",
        chains={
            "zero": (
                moved.format("B"),
                *(found.format(name) for name in ("A@1", "at1@1", "at2@2")),
                "resid_pre.0/A@4 > resid.0/A@4 > attn.1/outB@4",
            ),
            "counterfactual": (moved.format("B"), moved.format("D")),
        },
    ).build()


def build_query() -> Planted:
    """``A B C D A`` is followed by B, ``A B C D C`` by D: the two differ in what is looked for alone."""
    asked = "resid_pre.0/{0}@5 > resid.0/{0}@5 > attn.1/out{1}@5"
    ends = "attn.1/out{0}@5 > resid.1/out{0}@5 > output"
    key = "resid_pre.0/{0} > attn.0/prevA@2 > resid.0/prevA@2 > attn.1/outB@5"
    return Plan(
        "induction-query",
        _wiring(),
        clean="ABCDA",
        other="ABCDC",
        target="B",
        foil="D",
        chains={
            "zero": (
                "resid_pre.0/B@2 > resid.0/B@2 > attn.1/outB@5",
                ends.format("B"),
                *(key.format(name) for name in ("A@1", "at1@1", "at2@2")),
                asked.format("A", "B"),
            ),
            "counterfactual": (
                ends.format("B"),
                ends.format("D"),
                # What is looked for takes the attention off what else is.
                *(asked.format(looked, found) for looked in "AC" for found in "BD"),
            ),
        },
    ).build()
