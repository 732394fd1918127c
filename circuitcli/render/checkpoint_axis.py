"""The axis along which checkpoints of a training stand."""

import re
from collections.abc import Sequence

from circuitcli.render.plots import Axis, Number

_STEP = re.compile("[0-9]+")


def checkpoint_axis(steps: Sequence[int | None]) -> tuple[list[Number], Axis]:
    """Where checkpoints stand: by step, on a logarithmic axis that has a place for step 0; else by number."""
    known = [step for step in steps if step is not None]
    if len(known) < len(steps) or len(set(known)) < len(known):
        return [*range(len(steps))], Axis("checkpoint")
    return [step + 1 for step in known], Axis("training step + 1", "log", is_count=True)


def axis_of_names(names: Sequence[str]) -> tuple[list[Number], Axis]:
    """The same, by the last number in each name."""
    numbers = [_STEP.findall(name) for name in names]
    return checkpoint_axis([int(found[-1]) if found else None for found in numbers])
