"""What the effects of a graph add up to, and what they miss: told in its head, and warned of where it is much."""

import logging
from collections.abc import Mapping

from circuitcli.attribution.gradients import TOLERANCE
from circuitcli.attribution.mean_effects import Total
from circuitcli.hookpoints import HookPoint
from circuitcli.records import GraphRecord

logger = logging.getLogger(__name__)

# Differences of the metric that are rounding: shares of less mean nothing.
LEAST_RANGE = 1e-6


def sums_of(totals: Mapping[HookPoint, Total]) -> dict[str, dict[str, float | None]]:
    """For each hook point what its features and errors add up to, in the metric's unit; for each group, under what its
    coder reads, the gap too, and the steps that were taken."""
    return {
        str(hook): {name: value for name, value in vars(total).items() if value is not None}
        for hook, total in totals.items()
    }


def warn_of_gaps(head: GraphRecord) -> None:
    """Log a warning, with the worst hook point, where the effects of a graph miss much of the behaviour."""
    if head.metric_clean is None or head.metric_baseline is None:
        return
    behaviour = head.metric_clean - head.metric_baseline
    if abs(behaviour) < LEAST_RANGE:
        logger.warning(
            "the metric is the same with every node at its baseline (difference %.1e), so there is nothing to explain: "
            "choose another prompt or target, more hook points, or another --baseline",
            behaviour,
        )
        return
    found = {hook: sums for hook, sums in (head.effects or {}).items() if sums.get("gap") is not None}
    if not found:
        return
    worst = max(found, key=lambda hook: abs(found[hook]["gap"] or 0))
    share = abs(found[worst]["gap"] or 0) / abs(behaviour)
    if share > TOLERANCE:
        logger.warning("%s", _in_words(head, worst, found[worst], share))


def _in_words(head: GraphRecord, hook: str, sums: Mapping[str, float | None], share: float) -> str:
    gap, steps = sums.get("gap") or 0.0, int(sums.get("steps") or 1)
    what = (
        f"effects at {hook} add up to {abs(gap):.3g} {head.unit} {'more' if gap > 0 else 'less'} than taking all its "
        f"nodes away changes, {100 * share:.0f} % of the behaviour"
    )
    if head.method == "grad-ig":
        return f"{what}, after {steps} steps of integrated gradients: --steps N takes more"
    return (
        f"{what}: one gradient at the clean run does not see where the metric saturates on the way; --method ig "
        "follows the way"
    )
