"""One autoencoder while it learns: weights, optimiser, silence of its features, one step at a time."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from circuitcli.hookpoints import HookPoint
from circuitcli.saes.sparse import Autoencoded, Autoencoder, autoencode
from circuitcli.saes.topk import TopKSae
from circuitcli.training.dead import Silence
from circuitcli.training.initial import folded, initial_sae, input_scale
from circuitcli.training.loss import auxk, missed_variance
from circuitcli.training.schedule import Schedule

# Of Gao et al. 2024: gradients of features that are rarely active are tiny.
ADAM_EPSILON = 6.25e-10
WEIGHTS = Autoencoder._fields
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe:
    """How autoencoders are trained; the same for all hook points."""

    k: int
    d_sae: int
    schedule: Schedule
    clip: float
    auxk_weight: float
    dead_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Moments:
    """What is known of a hook point's activations beforehand: mean squared norm, and variance around the mean."""

    mean_square_norm: float
    variance: float


@dataclass(frozen=True)
class Step:
    """What one step measured, on its device: loss, missed share of the variance, active features per token."""

    loss: Float[Tensor, ""]
    fvu: Float[Tensor, ""]
    l0: Float[Tensor, ""]


class Learner:
    """A TopK autoencoder of one hook point that learns from raw activations.

    It works on activations times ``scale``, whose mean squared norm is their width; `finished` undoes that.
    """

    def __init__(
        self, hook: HookPoint, first: Float[Tensor, "batch d_in"], *, moments: Moments, recipe: Recipe
    ) -> None:
        """first: raw activations, on the device that is to be used, from which the decoder bias starts."""
        self.hook, self.recipe, self.device = hook, recipe, first.device
        self.scale = input_scale(moments.mean_square_norm, d_in=first.shape[1])
        self.variance = moments.variance * self.scale**2 or 1.0
        self.sae = initial_sae(hook, first.float() * self.scale, d_sae=recipe.d_sae, k=recipe.k, seed=recipe.seed)
        self.silence = Silence(recipe.d_sae, dead_tokens=recipe.dead_tokens, device=self.device)
        parameters = list(self.sae.parameters())
        # Fused reads and writes each number once; the other forms take tens of times as long on the CPU.
        is_fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(
            parameters, eps=ADAM_EPSILON, fused=is_fused, foreach=None if is_fused else False
        )

    @property
    def weights(self) -> Autoencoder:
        """The parameters in the form of the kernels."""
        return Autoencoder(*(getattr(self.sae, name) for name in WEIGHTS))

    def step(self, x: Float[Tensor, "batch d_in"], *, index: int) -> Step:
        """Learn from raw activations, as the step with this number."""
        x = x.to(self.device, torch.float32) * self.scale
        dead = self.silence.dead() if self.recipe.auxk_weight else None
        out = autoencode(x, self.weights, k=self.recipe.k, watched=dead)
        fvu = missed_variance(x, out.reconstruction, variance=self.variance)
        loss = fvu
        if dead is not None and dead.numel():
            k_aux = max(1, self.sae.d_in // 2)
            error = x - out.reconstruction.detach()
            loss = fvu + self.recipe.auxk_weight * auxk(error, out.watched, self.sae.W_dec[dead], k=k_aux)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._move(self.recipe.schedule.rate(index))
        return self._measured(loss, fvu, out)

    @torch.no_grad()
    def _move(self, rate: float) -> None:
        """One step of Adam along the clipped gradient, with decoder rows kept on the unit sphere."""
        decoder = self.sae.W_dec
        assert decoder.grad is not None
        along = torch.linalg.vecdot(decoder.grad, decoder)
        decoder.grad.addcmul_(along[:, None], decoder, value=-1.0)
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min(1e-12))

    @torch.no_grad()
    def _measured(self, loss: Tensor, fvu: Tensor, out: Autoencoded) -> Step:
        self.silence.update(out.values, out.indices)
        return Step(loss.detach(), fvu.detach(), (out.values > 0).sum() / out.values.shape[0])

    def finished(self) -> TopKSae:
        """The SAE for raw activations, on the CPU."""
        return folded(self.sae, scale=self.scale).cpu()

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, besides the batch and the settings; tensors share memory."""
        state = {"silent_tokens": self.silence.tokens}
        for name in WEIGHTS:
            parameter = getattr(self.sae, name)
            state[name] = parameter.detach()
            moments = self.optimizer.state.get(parameter, {})
            state |= {f"{name}.{moment}": moments[moment] for moment in (*MOMENTS, "step") if moment in moments}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on where `state` was taken. Raises KeyError or RuntimeError if it does not fit."""
        self.silence.tokens.copy_(state["silent_tokens"])
        with torch.no_grad():
            for name in WEIGHTS:
                parameter = getattr(self.sae, name)
                parameter.copy_(state[name])
                if f"{name}.step" in state:
                    moments = {key: torch.empty_like(parameter).copy_(state[f"{name}.{key}"]) for key in MOMENTS}
                    self.optimizer.state[parameter] = {
                        "step": state[f"{name}.step"].to(self.device, copy=True),
                        **moments,
                    }
