"""Records about autoencoders that were tried on planted features."""

from circuitcli.records.base import Record
from circuitcli.schema import Count, Flag, Number, Numbers, PathInRun, Share, Word


class ToyRecord(Record):
    """One autoencoder of a sweep over planted features; ``path`` holds its tensors, as NAME/W_enc and so on.

    mmcs: mean over planted features of the largest cosine with a learned one (MMCS, truth to learned; also called
    representedness); quarters: the same from the most frequent quarter of them to the rarest. mmcs_of_live: mean over
    live learned features of the largest cosine with a planted one. mmcs_with_larger: mean over learned features of the
    largest cosine with one of the next larger dictionary, absent for the largest. found: share of planted features with
    a cosine above .9. dead: share of learned features that no fresh example made active. loss: squared error, mean over
    examples and dimensions; fvu: that over the variance. l0: active features of an example.
    """

    kind: str = "toy"
    name: Word
    l1_weight: Number
    ratio: Number
    d_model: Count
    n_features: Count
    d_dict: Count
    steps: Count
    mmcs: Number
    mmcs_of_live: Number | None = None
    mmcs_with_larger: Number | None = None
    found: Share
    quarters: Numbers
    dead: Share
    collapsed: Flag
    loss: Number
    fvu: Number
    l0: Number
    path: PathInRun
    digest: Word
