"""What pages of features show, and what is told of a text."""

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, Section


class PagesSettings(Section):
    """What pages of features show, and what is told of a text."""

    neighbours: int = Field(8, ge=0, le=1000)
    """Features listed as nearest and as most correlated: of the same coder, and of the next ones of the same site."""
    correlation_tokens: int = Field(100_000, ge=0, le=MOST_TOKENS)
    """Cached tokens over which features are correlated, or fewer where many features are active; 0 for none."""
    ablate: bool | None = None
    """Run the model on each feature's own contexts without the feature: two forward passes for each context. By default
    only for features that are named with --feature, for thousands take hours."""
    per_token: int = Field(5, ge=1, le=1000)
    """Features listed for each token of a text, of each coder, strongest first."""
