"""Writing on with some features turned up or down."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from circuitcli.api.arguments import wrong_type
from circuitcli.api.behaviours import Prompts, one_prompt
from circuitcli.api.coders import SomeCoders, spliced
from circuitcli.api.models import as_model
from circuitcli.errors import SettingsError
from circuitcli.hookpoints import HookPoint, NodeId
from circuitcli.models.generation import ends_of
from circuitcli.models.loading import LanguageModel
from circuitcli.validation import steering

_HINT = 'write {"resid.1/17": 3.0}'


@dataclass(frozen=True, repr=False)
class Steered(steering.Texts):
    """What a model writes behind a prompt, as it is and with features scaled.

    kl_clean, kl_steered: KL(clean || steered) before each token of the clean and of the steered text, in nats.
    """

    def __repr__(self) -> str:
        mean = sum(self.kl_steered) / len(self.kl_steered)
        return f"Steered({self.steered[:60]!r}; clean {self.clean[:60]!r}; {mean:.3g} nats a token)"


def steer(
    model: LanguageModel,
    coders: SomeCoders,
    prompt: Prompts,
    scale: Mapping[str, float],
    *,
    n_tokens: int = 40,
    temperature: float = 0.0,
    seed: int = 0,
) -> Steered:
    """What the model writes behind a prompt with features scaled, beside what it writes by itself.

        found = circuit.steer(model, coders, "The weather today is", {"resid.1/17": 3.0})
        found.steered, found.clean, found.kl_steered

    At every position but that of BOS the features are ``factor * f`` of what is encoded in the run at hand; all else
    that is decoded and the error stay. temperature: 0 takes the most likely token each time; above, both texts are
    drawn by the same random numbers.

    Raises InputError for features that are not there, or of which none is active, SettingsError for names of anything
    else than features at all positions.
    """
    model = as_model(model)
    factors = _factors(scale)
    for name, number, least in (("n_tokens", n_tokens, 1), ("temperature", temperature, 0)):
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number < math.inf:
            raise wrong_type(name, number, f"a number of at least {least}", hint=f"for example {name}=1")
    _, prompts = one_prompt(prompt, model, several=("written on", "steer them one by one"))
    found = steering.steer(
        model.adapter,
        spliced(coders, model, layers=None, sites=None),
        prompts[0].ids,
        factors,
        first=prompts[0].first,
        n_tokens=int(n_tokens),
        temperature=temperature,
        seed=seed,
        ends=ends_of(model.adapter, model.tokenizer),
    )
    return Steered.of(found, model.tokenizer)


def _factors(scale: object) -> dict[HookPoint, dict[int, float]]:
    """Factors by hook point. Raises SettingsError for names and numbers that are none."""
    if not isinstance(scale, Mapping) or not scale:
        raise wrong_type("scale", scale, "a mapping from features to factors", hint=_HINT)
    factors: dict[HookPoint, dict[int, float]] = {}
    for name, factor in scale.items():
        is_number = isinstance(factor, int | float) and not isinstance(factor, bool) and math.isfinite(factor)
        if not isinstance(name, str) or not is_number:
            raise wrong_type("scale", {name: factor}, "a number for each feature", hint=_HINT)
        node = NodeId.parse(name)
        if node.index is None or node.position is not None:
            raise SettingsError(f"{node} is not a feature at all positions", hint=_HINT)
        factors.setdefault(node.hook, {})[node.index] = float(factor)
    return factors
