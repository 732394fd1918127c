"""How features are described."""

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, Section


class InterpSettings(Section):
    """How features are described."""

    tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Cached tokens to look at; by default all."""
    contexts: int = Field(8, ge=1, le=1000)
    """Top contexts kept for each feature, each from another block of text."""
    window: int = Field(8, ge=0, le=10_000)
    """Tokens shown on either side of the strongest one."""
    logits: int = Field(8, ge=1, le=10_000)
    """Promoted and suppressed tokens listed for each feature."""
    batch_size: int = Field(4096, ge=1, le=2**24)
    """Tokens encoded at once; changes speed and memory only."""
