"""Plots of stability, interaction and steering hold the numbers of their records."""

import pytest

from circuitcli.records import InteractionRecord, StabilityRecord, SteeringRecord
from circuitcli.render import measured
from circuitcli.render.plots import draw


def stable(of: str, what: str, *values: float, coders: str | None = None) -> StabilityRecord:
    middle = sum(values) / len(values)
    told = {"low": min(values), "median": middle, "high": max(values), "bar": 0.8, "graph": "circuit"}
    return StabilityRecord(of=of, what=what, value=middle, values=values, coders=coders, **told)


def lines(axes) -> dict[str, list[tuple[float, float]]]:
    return {str(line.get_label()): [tuple(map(float, point)) for point in line.get_xydata()] for line in axes.lines}


def test_stability_is_drawn_as_the_share_of_pairs_with_no_more_in_common() -> None:
    found = [stable("graph", "nodes", 1.0)]
    found += [stable("bootstrap", what, 0.5, 0.25) for what in ("nodes", "edges")]
    found += [stable("seed", "nodes", 0.5, coders="other")]
    nodes, edges = draw(measured.stability(found, title="again")).axes
    drawn = lines(nodes)
    assert drawn["bootstrap samples"] == [(0, 0), (0.25, 0), (0.25, 0.5), (0.5, 0.5), (0.5, 1), (1, 1)]
    assert drawn["proposed bar (0.8)"] == [(0.8, 0), (0.8, 1)] and "other SAEs other" in drawn
    assert {*lines(edges)} == {"bootstrap samples", "proposed bar (0.8)"}
    assert measured.stability(found[:1], title="again") is None, "a graph by itself has no pairs"


def test_an_interaction_curve_is_drawn_over_edges_and_over_their_share() -> None:
    record = InteractionRecord(
        name="i",
        source="resid.1",
        target="resid.2",
        n_edges=(0, 1, 2, 8),
        kl=(4.0, 3.0, 1.0, 1.0),
        kl_low=(3.0, 2.0, 0.5, 0.5),
        kl_high=(5.0, 4.0, 1.5, 1.5),
        floor=1.0,
        unit="nats",
        n_live=2,
        n_possible=8,
        absolute={"value": 11.5},
        relative={"value": 1.4375},
        absolute_above={"value": 3.5},
        relative_above={"value": 0.4375},
        n_prompts=3,
        n_tokens=30,
    )
    by_edges, by_share = draw(measured.interactions([record])).axes
    curve = lines(by_edges)["edges of the largest attribution"]
    assert curve == [(1, 3), (2, 1), (8, 1)], "an axis by decades has no place for no edge"
    assert lines(by_share)["edges of the largest attribution"] == [(0.125, 3), (0.25, 1), (1, 1)]
    assert lines(by_edges)["all edges: what the SAEs miss"] == [(1, 1), (8, 1)]
    assert by_edges.get_xscale() == by_share.get_xscale() == "log"
    assert "11.5" in by_edges.get_title(loc="left") and "1.438" in by_share.get_title(loc="left")


def test_steering_is_drawn_token_by_token_along_both_texts() -> None:
    record = SteeringRecord(
        name="steering",
        prompt="a",
        factors={f"resid.1/{index}": 3.0 for index in range(6)},
        clean=" b c",
        steered=" d",
        tokens_clean=(" b", " c"),
        tokens_steered=(" d",),
        kl_clean=(0.5, 0.25),
        kl_steered=(0.5,),
        unit="nats",
        temperature=0.0,
    )
    (axes,) = draw(measured.steering(record, title="steered")).axes
    assert lines(axes) == {"along the steered text": [(1, 0.5)], "along the clean text": [(1, 0.5), (2, 0.25)]}
    assert axes.get_title(loc="left").endswith("and 2 more") and axes.get_ylim()[0] == pytest.approx(0)
