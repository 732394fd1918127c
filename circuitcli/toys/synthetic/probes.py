"""How well a linear probe that is told the truth detects each planted feature: what a coder's encoder could do at
best."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from circuitcli.toys.synthetic.scores import Detection, DetectionMeter
from circuitcli.toys.synthetic.world import World

PROBE_RATE = 0.02
# Share of the steps, at the end, in which the rate falls to zero.
_FALLING = 0.5
# Added to the variances, as a share of their mean.
_RIDGE = 1e-3


def probe_ceiling(world: World, *, n_probes: int, n_steps: int, batch_size: int, n_test_batches: int) -> Detection:
    """The mean scores of logistic probes for the ``n_probes`` planted features that are active most often.

    Each is a weight for every dimension and a bias, found by Adam on the logistic loss from the linear discriminant on,
    and says yes where it is above zero. Another stream of the same data tests them.
    """
    planted = world.recipe.rates().argsort(descending=True)[:n_probes]
    weights, bias = _discriminants(world, planted, batch_size=batch_size, n_batches=min(n_steps, 32))
    weights, bias = weights.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.Adam([weights, bias], lr=PROBE_RATE, fused=True)
    for step in range(n_steps):
        x, sample = world.batch("probe", step, batch_size)
        optimizer.param_groups[0]["lr"] = PROBE_RATE * min(1.0, (n_steps - step) / (_FALLING * n_steps))
        logits = torch.addmm(bias, x, weights.T)
        true = sample.is_active(world.recipe.n_features)[:, planted]
        # Each probe has a mean of its own over the rows: how many probes there are changes none of them.
        loss = F.binary_cross_entropy_with_logits(logits, true.float(), reduction="sum") / batch_size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return _tested(world, planted, weights.detach(), bias.detach(), batch_size=batch_size, n_batches=n_test_batches)


def _tested(
    world: World, planted: Tensor, weights: Tensor, bias: Tensor, *, batch_size: int, n_batches: int
) -> Detection:
    meter = DetectionMeter(len(planted))
    for index in range(n_batches):
        x, sample = world.batch("held out", index, batch_size)
        meter.update(torch.addmm(bias, x, weights.T) > 0, sample.is_active(world.recipe.n_features)[:, planted])
    return meter.result()


def _discriminants(
    world: World, planted: Tensor, *, batch_size: int, n_batches: int
) -> tuple[Float[Tensor, "probe d"], Float[Tensor, " probe"]]:
    """Linear discriminants: weights towards a feature's mean, in units of the covariance; and their biases."""
    d, n = world.recipe.d_model, len(planted)
    products, total = torch.zeros(d, d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    of_active, counts = torch.zeros(n, d, dtype=torch.float64), torch.zeros(n, dtype=torch.float64)
    for index in range(n_batches):
        x, sample = world.batch("probe", index, batch_size)
        is_active: Bool[Tensor, "row probe"] = sample.is_active(world.recipe.n_features)[:, planted]
        products += (x.T @ x).double()
        total += x.double().sum(dim=0)
        of_active += (is_active.float().T @ x).double()
        counts += is_active.sum(dim=0)
    n_rows = n_batches * batch_size
    mean = total / n_rows
    covariance = products / n_rows - mean[:, None] * mean
    covariance += _RIDGE * covariance.diagonal().mean() * torch.eye(d, dtype=torch.float64)
    share = ((counts + 0.5) / (n_rows + 1.0))[:, None]
    shift = (of_active - counts[:, None] * mean) / counts.clamp_min(1.0)[:, None]  # from the mean of all to the active
    weights = torch.linalg.solve(covariance, shift.T).T / (1 - share)
    middle = mean + shift * (1 - 2 * share) / (2 * (1 - share))
    bias = torch.logit(share[:, 0]) - (weights * middle).sum(dim=1)
    return weights.float(), bias.float()
