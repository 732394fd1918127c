"""The architectures that an SAE can have, by name."""

from circuitcli.saes.abstopk import AbsTopKSae
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.checkpoint_crosscoder import CheckpointCrosscoder
from circuitcli.saes.crosscoder import Crosscoder
from circuitcli.saes.gated import GatedSae
from circuitcli.saes.jumprelu import JumpReluSae
from circuitcli.saes.matching_pursuit import MatchingPursuitSae
from circuitcli.saes.relu import ReluSae
from circuitcli.saes.signed_topk import SignedTopKSae
from circuitcli.saes.temporal import TemporalSae
from circuitcli.saes.topk import TopKSae

_ALL = (
    ReluSae,
    GatedSae,
    TopKSae,
    AbsTopKSae,
    SignedTopKSae,
    JumpReluSae,
    MatchingPursuitSae,
    TemporalSae,
    Crosscoder,
    CheckpointCrosscoder,
)
ARCHITECTURES: dict[str, type[SparseCoder]] = {made.architecture: made for made in _ALL}
