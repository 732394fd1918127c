"""The model with its optimiser: first weights, one step, and the state from which it goes on bit for bit."""

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

from circuitcli.pretraining.batches import Batch
from circuitcli.settings.pretrain import PretrainSettings
from circuitcli.training.ranks import ALONE, Ranks

_MODEL, _BEST, _OPTIMIZER, _BEST_LOSS = "model/", "best/", "optimizer/", "best_loss"


def new_model(settings: PretrainSettings, *, n_ids: int, end_of_text: int | None, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with the first weights of the seed."""
    config = GPT2Config(
        vocab_size=n_ids,
        n_positions=settings.context_length,
        n_embd=settings.d_model,
        n_layer=settings.n_layers,
        n_head=settings.n_heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=settings.dropout,
        embd_pdrop=settings.dropout,
        attn_pdrop=settings.dropout,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config)


def learning_rate(settings: PretrainSettings, *, step: int) -> float:
    """Rate of a step: a line up to the peak, then a cosine down to the minimum, or the peak for ever."""
    peak, minimum = settings.learning_rate, settings.minimum_rate
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    if settings.schedule == "constant":
        return peak
    done = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * done))


class ModelOptimiser:
    """What a training changes, and what a checkpoint holds; ``step`` counts the optimiser's steps."""

    name = "model"

    def __init__(
        self, model: GPT2LMHeadModel, settings: PretrainSettings, *, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.model = model.to(device)
        self.settings, self.device, self.ranks = settings, device, ranks
        self.optimizer = self._optimizer()
        self.best: dict[str, Tensor] = {}
        self.best_loss = math.inf
        self._forward: torch.nn.Module = torch.compile(model) if settings.compile else model  # type: ignore[assignment]

    def _optimizer(self) -> torch.optim.AdamW:
        settings, parameters = self.settings, list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        betas = (settings.beta1, settings.beta2)
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=betas, fused=True)

    def learn(self, batches: Iterable[Batch], *, step: int, seed: int) -> "Learned":
        """One step of the optimiser on the mean loss of the batches, of which this process reads its windows."""
        self.model.train()
        if self.settings.dropout:
            torch.manual_seed((seed * 1_000_003 + step * self.ranks.n + self.ranks.rank) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.settings, step=step)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for batch in batches:
            own = batch.part(self.ranks.rank, self.ranks.n).on(self.device)
            loss = token_losses(self._forward, own, autocast=self.settings.autocast).mean() / self.settings.accumulation
            loss.backward()
            total += loss.detach()
        if self.ranks.n > 1:
            self.ranks.average([p.grad for p in self.model.parameters() if p.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_norm)
        self.optimizer.step()
        return Learned(total, norm)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> float:
        """Mean nats per predicted token in float32."""
        return evaluate(self.model, batches, device=self.device)

    def keep_if_best(self, loss: float) -> None:
        """Remember the weights if no earlier ones had a smaller loss."""
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}

    def restore_best(self) -> None:
        """Put the weights with the smallest loss in place, if any were remembered."""
        self._set_weights(self.best)

    @torch.no_grad()
    def _set_weights(self, weights: Mapping[str, Tensor]) -> None:
        own = dict(self.model.named_parameters())
        for name, tensor in weights.items():
            own[name].copy_(tensor)

    def state(self) -> dict[str, Tensor]:
        """All of it as named tensors."""
        moments = self.optimizer.state_dict()["state"]
        return {
            **{_MODEL + name: tensor.detach() for name, tensor in self.model.named_parameters()},
            **{f"{_OPTIMIZER}{number}/{name}": t for number, own in moments.items() for name, t in own.items()},
            **{_BEST + name: tensor for name, tensor in self.best.items()},
            _BEST_LOSS: torch.tensor(self.best_loss, dtype=torch.float64),
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Go to a state. Raises KeyError or RuntimeError for one of another model."""
        self._set_weights({name: state[_MODEL + name] for name, _ in self.model.named_parameters()})
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            if name.startswith(_OPTIMIZER):
                number, key = name.removeprefix(_OPTIMIZER).split("/")
                moments.setdefault(int(number), {})[key] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.best = {n.removeprefix(_BEST): t.to(self.device) for n, t in state.items() if n.startswith(_BEST)}
        self.best_loss = float(state[_BEST_LOSS])


class Learned:
    """What a step made of its batches: the mean loss of this process's windows, and the norm of the gradient."""

    def __init__(self, loss: Float[Tensor, ""], gradient_norm: Float[Tensor, ""]) -> None:
        self.loss, self.gradient_norm = loss, gradient_norm


def token_losses(model: torch.nn.Module, batch: Batch, *, autocast: bool) -> Float[Tensor, " prediction"]:
    """Nats of each predicted token."""
    with torch.autocast(batch.inputs.device.type, torch.bfloat16, enabled=autocast):
        logits = model(input_ids=batch.inputs, use_cache=False).logits  # (batch, position, vocab)
    predictions = logits[:, : batch.targets.shape[1]].flatten(0, 1).float()
    return functional.cross_entropy(predictions, batch.targets.flatten(), reduction="none")


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: Iterable[Batch], *, device: torch.device) -> float:
    """Mean nats per predicted token of a model in evaluation mode, in the number type of its weights."""
    model.eval()
    losses = [token_losses(model, batch.on(device), autocast=False) for batch in batches]
    return float(torch.cat(losses).double().mean())
