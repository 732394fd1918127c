"""``circuit interp --labels``: labels that a person wrote, kept in the run; needs no torch."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

from circuitcli.errors import InputError
from circuitcli.features.label_files import HAND, Label, keep, read_by_hand, read_kept
from circuitcli.hookpoints import NodeId
from circuitcli.reading import as_path
from circuitcli.records import FeaturesRecord, GraphRecord, LabelsRecord, Record, SaeRecord, Stream
from circuitcli.stages.request import Request

logger = logging.getLogger(__name__)
# Features that are named in a warning.
_SHOWN = 5


@dataclass(frozen=True)
class Coder:
    """What records tell of the coder at a hook point; ``d_sae`` is None where they do not."""

    sae: str | None
    d_sae: int | None

    def has(self, node: NodeId) -> bool:
        """Whether there is such a feature, as far as is known."""
        return self.d_sae is None or (node.index is not None and node.index < self.d_sae)


def run(request: Request) -> list[Record]:
    """Take over the files that the settings name; a record for each hook point of which something is labelled.

    Labels of features that the run does not have are left out, which is said. Raises InputError for a file that cannot
    be read, and where nothing is left.
    """
    found: dict[str, Label] = {}
    for path in request.settings.explain.labels:
        found |= read_by_hand(as_path(path))
    known = coders(request.records)
    own = {name: label for name, label in found.items() if _is_known(known, name)}
    gone = [name for name in found if name not in own]
    if gone:
        more = f" and {len(gone) - _SHOWN} more" if len(gone) > _SHOWN else ""
        told = f"{', '.join(gone[:_SHOWN])}{more}, which the run does not have"
        if not own:
            raise InputError(f"all labels are of {told}", hint="train coders first, or name another --run")
        logger.warning("left out labels of %s", told)
    sae = {name: known[name.partition("/")[0]].sae for name in own}
    return keep_labels(request, HAND, [label.model_copy(update={"sae": sae[name]}) for name, label in own.items()])


def keep_labels(
    request: Request, source: str, labels: Iterable[Label], *, model: str | None = None, locked: bool = False
) -> list[Record]:
    """Keep labels in the run beside those of before; a record for each hook point that has some of this source.

    locked: whether this process holds the run already.
    """
    made = list(labels)
    with nullcontext() if locked else request.run.lock(begins=False):
        path = keep(request.run.path, source, made)
    new = Counter(label.id.partition("/")[0] for label in made)
    counts = Counter(name.partition("/")[0] for name in read_kept(request.run.path, source))
    place = path.relative_to(request.run.path).as_posix()
    return [
        LabelsRecord(hook=hook, source=source, n_labels=counts[hook], n_new=new[hook], path=place, model=model)
        for hook in counts
        if new[hook]
    ]


def coders(records: Stream) -> dict[str, Coder]:
    """The coders of which there are records, by hook point: those of graphs, trained, or described."""
    found: dict[str, Coder] = {}
    for graph in records.of(GraphRecord):
        found |= {hook: Coder(sae, None) for hook, sae in graph.saes.items()}
    found |= {record.hook: Coder(record.digest, record.d_sae) for record in records.of(SaeRecord)}
    for record in records.of(FeaturesRecord):
        found[record.hook] = Coder(record.sae, record.n_live + record.n_dead)
    return found


def _is_known(known: Mapping[str, Coder], name: str) -> bool:
    node = NodeId.parse(name)
    return str(node.hook) in known and known[str(node.hook)].has(node)
