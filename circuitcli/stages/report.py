"""Reports: all that a test found, in one file of the run."""

import json
from typing import Any

from circuitcli.runs import atomic
from circuitcli.stages.trials import Plan


def write_report(plan: Plan, **found: Any) -> None:
    """Write what was found; before that what was tested, and first which controls it is no better than."""
    first = {name: found.pop(name) for name in ("no_better_than", "verdict") if name in found}
    about = {"graph": plan.graph or plan.name, "nodes": [str(node) for node in plan.nodes], "ablation": plan.baseline}
    with atomic(plan.report) as stream:
        json.dump({**first, **about, **found}, stream, indent=1, ensure_ascii=False)
        stream.write("\n")
