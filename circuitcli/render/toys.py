"""The heat maps of a sweep over planted features: the weight of the penalty across, the size of the dictionary up."""

from collections.abc import Sequence

from circuitcli.records import ToyRecord
from circuitcli.render.heatmaps import HeatMap, HeatMaps


def heat_maps(records: Sequence[ToyRecord]) -> HeatMaps:
    """MMCS with the truth, and with the next larger dictionary; the dead share, and the reconstruction loss."""
    weights = sorted({record.l1_weight for record in records})
    ratios = sorted({record.ratio for record in records})
    by_place = {(record.ratio, record.l1_weight): record for record in records}
    places = [[by_place[ratio, weight] for weight in weights] for ratio in ratios]
    collapsed = [[record.collapsed for record in row] for row in places]
    first = records[0]
    return HeatMaps(
        [
            HeatMap("MMCS, truth → learned", _values(places, "mmcs"), collapsed, 0, 1),
            HeatMap("MMCS with the next larger dictionary", _values(places, "mmcs_with_larger"), collapsed, 0, 1),
            HeatMap("dead features (share)", _values(places, "dead"), collapsed, 0, 1),
            HeatMap("reconstruction loss (mean squared error)", _values(places, "loss"), collapsed, is_log=True),
        ],
        columns=[f"{weight:g}" for weight in weights],
        rows=[f"{ratio:g}" for ratio in ratios],
        x="L1 weight",
        y="dictionary ratio",
        title=f"{first.n_features:,} planted features in {first.d_model:,} dimensions, {first.steps:,} steps"
        + ("; × collapsed" if any(map(any, collapsed)) else ""),
    )


def _values(places: Sequence[Sequence[ToyRecord]], name: str) -> list[list[float | None]]:
    return [[getattr(record, name) for record in row] for row in places]
