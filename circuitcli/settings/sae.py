"""Shape of the sparse autoencoders."""

from pydantic import Field

from circuitcli.settings.section import Section


class SaeSettings(Section):
    """Shape of the sparse autoencoders."""

    k: int = Field(32, ge=1)
    """Features left active per token."""
    expansion: float = Field(8.0, gt=0)
    """Features per model dimension, where d_sae is not given."""
    d_sae: int | None = Field(None, ge=1)
    """Number of features."""
