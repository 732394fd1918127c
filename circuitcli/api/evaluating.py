"""How good coders are."""

from collections.abc import Mapping
from typing import Any

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import ByHook, wrong_type
from circuitcli.api.coders import SomeCoders, by_hook, check_fits
from circuitcli.api.models import as_model
from circuitcli.evaluation.held_out import HeldOut
from circuitcli.models.loading import LanguageModel
from circuitcli.saes.crosscoder import Crosscoder


def evaluate(
    model: LanguageModel, coders: SomeCoders, cache: ActivationCache, *, tokens: int = 16_384, loss_tokens: int = 4096
) -> ByHook[Mapping[str, Any]]:
    """How much of the activations coders explain, and what the model loses if they stand in their place, by hook point.

        quality = circuit.evaluate(model, coders, cache)
        quality["resid.1"]["explained_variance"], quality["resid.1"]["l0"], quality["resid.1"]["kl_spliced"]

    Measured on the last ``tokens`` of the cache, which `train` holds out first, and on the text of the first
    ``loss_tokens`` of these: explained variance, L0, densities, geometry, cross-entropy and KL divergence in nats with
    the coder alone in the model, and standard errors. Each coder is measured by itself, a crosscoder at all its hook
    points. Raises InputError for coders whose activations are not in the cache, or a model that does not give them.
    """
    if not isinstance(cache, ActivationCache):
        raise wrong_type("cache", cache, "a cache of activations", hint="collect() gives one")
    for name, number in (("tokens", tokens), ("loss_tokens", loss_tokens)):
        if not isinstance(number, int) or isinstance(number, bool) or number < (name == "tokens"):
            raise wrong_type(name, number, "a number of tokens", hint=f"for example {name}=4096")
    found, loaded = by_hook(coders), as_model(model)
    for coder in found.values():
        check_fits(coder, loaded)
    rows = range(max(0, cache.n_tokens - tokens), cache.n_tokens)
    held_out = HeldOut.of(
        cache, rows, load=lambda: loaded, n_loss_tokens=loss_tokens, device=str(loaded.adapter.device)
    )
    facts = {}
    for hook, coder in found.items():
        placed = coder.to(held_out.device)
        facts[hook] = held_out.facts_of_crosscoder(placed) if isinstance(placed, Crosscoder) else held_out.facts(placed)
    return ByHook(facts)
