"""How much of the planted features autoencoders have found, on batches that they have not learned from."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from circuitcli.progress import track
from circuitcli.toys.gradients import encoded
from circuitcli.toys.ground_truth import MEASURING, GroundTruth
from circuitcli.toys.stack import Dictionary, Model, Stack

# A planted feature is found if a learned one points so nearly its way.
FOUND = 0.9
# Fewer live features than this share of what there is to find, or of the dictionary if that is smaller: a collapse.
COLLAPSED = 0.2
QUARTERS = 4


@dataclass(frozen=True)
class Measured:
    """One trained autoencoder.

    mmcs: mean over planted features of the largest cosine with a learned one (MMCS, truth to learned; also called
    representedness); quarters: the same for the most frequent quarter of them, the next, and so on. mmcs_of_live: the
    other way round, mean over live learned features of the largest cosine with a planted one. mmcs_with_larger: mean
    over learned features of the largest cosine with one of the next larger dictionary of the same penalty, which needs
    no truth; None for the largest. found: share of planted features with a cosine above .9. dead: share of learned
    features that no example made active. loss: squared error, mean over examples and dimensions. fvu: that over the
    variance. l0: active features of an example.
    """

    model: Model
    mmcs: float
    mmcs_of_live: float | None
    mmcs_with_larger: float | None
    found: float
    quarters: tuple[float, ...]
    dead: float
    loss: float
    fvu: float
    l0: float
    n_planted: int

    @property
    def is_collapsed(self) -> bool:
        """Whether most of what it would need is dead; of a dictionary of no more than the truth more than 80 %."""
        needed = min(self.model.width, self.n_planted)
        return (1 - self.dead) * self.model.width < COLLAPSED * needed


@dataclass(frozen=True)
class _Sums:
    loss: float
    l0: float
    n_live: int
    live: Tensor


@torch.no_grad()
def measure(stack: Stack, truth: GroundTruth) -> list[Measured]:
    """All autoencoders of a stack, in its order, on the same fresh batches."""
    device = stack.parameters["W_dec"].device
    batches = [truth.batch(index, stream=MEASURING).x.to(device) for index in range(stack.settings.eval_batches)]
    x = torch.cat(batches)
    variance = float((x - x.mean(0)).square().mean())
    parts = list(stack.dictionaries())
    larger = _larger([model for model, _ in parts])
    planted = truth.directions.to(device)
    found = []
    for index, (model, own) in enumerate(track(parts, "measure", unit="models")):
        sums, other = _sums(own, batches), larger[index]
        with_larger = None if other is None else float(largest_cosines(own.W_dec, parts[other][1].W_dec).mean())
        found.append(_measured(model, own, planted, sums=sums, variance=variance, with_larger=with_larger))
    return found


def _measured(
    model: Model, own: Dictionary, planted: Tensor, *, sums: _Sums, variance: float, with_larger: float | None
) -> Measured:
    cosines = largest_cosines(planted, own.W_dec)
    of_live = float(largest_cosines(own.W_dec[sums.live], planted).mean()) if sums.n_live else None
    return Measured(
        model=model,
        mmcs=float(cosines.mean()),
        mmcs_of_live=of_live,
        mmcs_with_larger=with_larger,
        found=float((cosines > FOUND).float().mean()),
        quarters=tuple(float(part.mean()) for part in cosines.tensor_split(QUARTERS) if len(part)),
        dead=1 - sums.n_live / model.width,
        loss=sums.loss,
        fvu=sums.loss / variance,
        l0=sums.l0,
        n_planted=len(planted),
    )


def _sums(own: Dictionary, batches: Sequence[Tensor]) -> _Sums:
    squares, n_codes, live = 0.0, 0, torch.zeros(len(own.b_enc), dtype=torch.bool, device=own.b_enc.device)
    for x in batches:
        codes = encoded(x, own.W_enc, own.b_enc).relu_()
        active = codes > 0
        squares += float((codes.T @ own.W_dec - x).square().mean())
        n_codes += int(active.sum())
        live |= active.any(1)
    n_examples = sum(map(len, batches))
    return _Sums(squares / len(batches), n_codes / n_examples, int(live.sum()), live)


def largest_cosines(of: Float[Tensor, "row d_model"], among: Float[Tensor, "other d_model"]) -> Float[Tensor, " row"]:
    """For each row its largest cosine with one of the others."""
    others = F.normalize(among, dim=1)
    return torch.cat([(F.normalize(part, dim=1) @ others.T).amax(1) for part in of.split(4096)])


def _larger(models: Sequence[Model]) -> list[int | None]:
    """For each the place of that with the same penalty and the next larger width, None for the largest."""
    following: list[int | None] = [None] * len(models)
    by_weight: dict[float, list[int]] = {}
    for index, model in enumerate(models):
        by_weight.setdefault(model.l1_weight, []).append(index)
    for places in by_weight.values():
        for first, second in pairwise(sorted(places, key=lambda place: models[place].width)):
            following[first] = second
    return following
