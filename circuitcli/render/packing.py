"""The document of a drawing in less room, for pages: tables by columns, what is known of a feature once, and no number
that follows from others. ``unpacked(packed(content)) == content``, number for number.

    {..., "nodes": {"length": 2, "columns": {"id": ["resid.0/7@2", "output"], "unit": ["nats"]}},
          "edges": {"length": 1, "columns": {"source": [0], "target": [1], "weight": [0.25]}},
          "drawn_edges": [0], "details": {"resid.0/7": {...}}}

A column of which all values are the same has one. Edges name their ends by the number of the node.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from circuitcli.render.scales import Scale

_DERIVED = ("strength", "opacity", "width", "drawn")


def packed(content: Mapping[str, Any]) -> dict[str, Any]:
    """What `document` gives, packed."""
    numbers = {node["id"]: number for number, node in enumerate(content["nodes"])}
    edges = [
        {
            **{name: value for name, value in edge.items() if name not in _DERIVED},
            "source": numbers[edge["source"]],
            "target": numbers[edge["target"]],
        }
        for edge in content["edges"]
    ]
    return {
        **content,
        "nodes": _table([{name: node[name] for name in node if name != "details"} for node in content["nodes"]]),
        "edges": _table(edges),
        "drawn_edges": [number for number, edge in enumerate(content["edges"]) if edge["drawn"]],
        "details": {node["feature"]: node["details"] for node in content["nodes"] if node["details"] is not None},
    }


def unpacked(content: Mapping[str, Any]) -> dict[str, Any]:
    """What was packed."""
    scales = {scale["unit"]: Scale(scale["unit"], scale["largest"]) for scale in content["scales"]}
    drawn = set(content["drawn_edges"])
    nodes = [{**node, "details": content["details"].get(node["feature"])} for node in _rows(content["nodes"])]
    edges = [
        {**_edge(edge, nodes, scales[edge["unit"]]), "drawn": number in drawn}
        for number, edge in enumerate(_rows(content["edges"]))
    ]
    rest = {name: value for name, value in content.items() if name not in ("drawn_edges", "details")}
    return {**rest, "nodes": nodes, "edges": edges}


def _edge(edge: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], scale: Scale) -> dict[str, Any]:
    weight = edge["weight"]
    look = {"strength": scale.strength(weight), "opacity": scale.opacity(weight), "width": scale.width(weight)}
    return {**edge, "source": nodes[edge["source"]]["id"], "target": nodes[edge["target"]]["id"], **look}


def _table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {"length": len(rows), "columns": {name: _column([row[name] for row in rows]) for name in names}}


def _column(values: list[Any]) -> list[Any]:
    first = values[0]
    # 1 and True are equal, and 0.0 and -0.0, but not the same.
    same = all(value == first and repr(value) == repr(first) for value in values)
    return values[:1] if same else values


def _rows(table: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = table["columns"]
    return [
        {name: values[0 if len(values) == 1 else number] for name, values in columns.items()}
        for number in range(table["length"])
    ]
