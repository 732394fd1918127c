"""How features are described."""

from pydantic import Field

from circuitcli.settings.section import Section


class InterpSettings(Section):
    """How features are described."""

    tokens: int | None = Field(None, ge=1)
    """Cached tokens to look at; by default all."""
    contexts: int = Field(8, ge=1)
    """Top contexts kept for each feature, each from another block of text."""
    window: int = Field(8, ge=0)
    """Tokens shown on either side of the strongest one."""
    logits: int = Field(8, ge=1)
    """Promoted and suppressed tokens listed for each feature."""
    batch_size: int = Field(4096, ge=1)
    """Tokens encoded at once; changes speed and memory only."""
