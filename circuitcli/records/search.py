"""Records of a search by resampling."""

from circuitcli.records.base import Record
from circuitcli.schema import Count, Name, Number, Share, Word


class SearchRecord(Record):
    """What the circuits of some prompts come to, each found by itself.

    Nodes and edges are those of a prompt. kl: mean over hook points of KL(clean || circuit there), in nats; reached:
    share of the prompts in which it is at most ``max_kl`` at each.
    """

    kind: str = "search"
    name: Name
    by: Word
    max_kl: Number
    n_prompts: Count
    median_nodes: Number
    mean_nodes: Number
    n_edges: Number
    median_kl: Number
    mean_kl: Number
    reached: Share
