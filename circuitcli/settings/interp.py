"""How features are described."""

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, Section


class InterpSettings(Section):
    """How features are described."""

    tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Cached tokens to look at; by default all."""
    contexts: int = Field(8, ge=1, le=1000)
    """Top contexts kept for each feature, each from another document, or from another block of text where documents are
    few or not known."""
    quantiles: int = Field(4, ge=0, le=1000)
    """Further contexts, at evenly spaced quantiles of activation."""
    window: int = Field(16, ge=0, le=10_000)
    """Tokens shown on either side of the strongest one."""
    logits: int = Field(8, ge=1, le=10_000)
    """Promoted and suppressed tokens listed for each feature."""
    score_tokens: int = Field(0, ge=0, le=MOST_TOKENS)
    """Keep so many of the last tokens out of the descriptions, and tell how well each label says there where its
    feature is active: balanced accuracy, beside that of another feature's label; 0 for no scores."""
    batch_size: int = Field(4096, ge=1, le=2**24)
    """Tokens encoded at once; changes speed and memory only."""
