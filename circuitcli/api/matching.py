"""Which features of two coders are the same."""

import torch

from circuitcli.activations.cache import ActivationCache
from circuitcli.api.arguments import checked, wrong_type
from circuitcli.errors import InputError, SettingsError
from circuitcli.features.coactivation import codes_of, likeness
from circuitcli.features.matching import directions
from circuitcli.features.pairing import Pairs, paired
from circuitcli.saes.base import SparseCoder
from circuitcli.settings.develop import DevelopSettings


def match(
    coder: SparseCoder,
    other: SparseCoder,
    cache: ActivationCache | None = None,
    *,
    other_cache: ActivationCache | None = None,
    by: str | None = None,
    assignment: str | None = None,
    tokens: int | None = None,
) -> Pairs:
    """Features of ``other`` paired with those of ``coder``, with the cosine of each pair; dead ones apart.

        pairs = circuit.match(coders["resid.1"], others["resid.1"], cache)
        pairs.at_least(0.7)                                   # {feature: that of the other}
        pairs.n_within(0.3) / pairs.n_live_target             # share of the other's features with so near a partner

    by: activation (cosine over the same tokens) or correlation, for which a cache is needed, or decoder (cosine of what
    they write), as without one. other_cache: where the other reads another model, its activations of the same tokens.
    assignment: hungarian, greedy or best, as `circuit develop` has it. tokens: of the cache, how many are looked at.
    Without a cache a feature is dead if it writes nothing. What a share means only another seed of the same model and
    shuffled features tell. Raises InputError for caches of other tokens, SettingsError for what is no coder.
    """
    for name, one in (("coder", coder), ("other", other)):
        if not isinstance(one, SparseCoder):
            raise wrong_type(name, one, "a sparse coder", hint="load_coders() and train() give coders")
    settings = checked(
        DevelopSettings, by=by or ("decoder" if cache is None else None), assignment=assignment, tokens=tokens
    )
    ways = directions(coder), directions(other)
    if cache is None:
        if settings.by != "decoder":
            raise SettingsError(f"by={settings.by} needs a cache", hint="match(coder, other, cache), or by='decoder'")
        live = [way.norm(dim=1) > 0 for way in ways]
        return paired(ways[0] @ ways[1].T, live_source=live[0], live_target=live[1], assignment=settings.assignment)
    _check_same(cache, other_cache)
    codes = [
        codes_of(one, own, n_tokens=settings.tokens) for one, own in ((coder, cache), (other, other_cache or cache))
    ]
    alike = ways[0] @ ways[1].T if settings.by == "decoder" else likeness(codes[0], codes[1], settings.by)
    return paired(alike, live_source=codes[0].live, live_target=codes[1].live, assignment=settings.assignment)


def _check_same(cache: ActivationCache, other: ActivationCache | None) -> None:
    if other is None:
        return
    if cache.n_tokens != other.n_tokens or not torch.equal(
        cache.tokens(0, cache.n_tokens).token, other.tokens(0, other.n_tokens).token
    ):
        raise InputError(
            f"{other.path} has other tokens than {cache.path}", hint="collect both from one text with the same settings"
        )
