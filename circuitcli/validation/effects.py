"""How effects of all nodes are taken for a comparison: as a graph's own were."""

from circuitcli.records import GraphRecord
from circuitcli.settings.graph import OF_ONE_GRADIENT, GraphSettings


def effects_like(head: GraphRecord | None, settings: GraphSettings) -> GraphSettings:
    """The settings with the method of a graph, if that is one of gradients, else with integrated gradients."""
    method = "" if head is None else head.method.removeprefix("grad-").removesuffix("-refined")
    if method in OF_ONE_GRADIENT:
        return settings.model_copy(update={"method": method})
    steps = head.steps if head is not None and method == "ig" else settings.ig_steps
    return settings.model_copy(update={"method": "ig", "ig_steps": steps})
