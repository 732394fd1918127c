"""The kinds of sites, which pictures tell apart by colour: the residual stream, attention, MLPs."""

from collections.abc import Iterable

from circuitcli.graphs import Node

RESIDUAL, ATTENTION, MLP = "residual stream", "attention", "MLP"
_OTHERS = {"attn_in": ATTENTION, "attn": ATTENTION, "mlp_in": MLP, "mlp": MLP}
# Of boxes and of what is written beside them; blue and red are taken by signs, green by the output.
FILL = {RESIDUAL: "#ffffff", ATTENTION: "#fff6e2", MLP: "#f5effc"}
INK = {RESIDUAL: "#5b6472", ATTENTION: "#8a5a00", MLP: "#6b3fa0"}


def kind_of(site: str) -> str:
    """The kind of a site: attention and MLPs with what they read, all else is the residual stream."""
    return _OTHERS.get(site, RESIDUAL)


def kind_of_node(node: Node) -> str | None:
    """The kind of the site that a node is named by; None for the output."""
    return None if node.place is None else kind_of(node.place.hook.site)


def kinds_in(nodes: Iterable[Node]) -> list[str]:
    """The kinds that some nodes have, in the order of `FILL`."""
    there = {kind_of_node(node) for node in nodes}
    return [kind for kind in FILL if kind in there]
