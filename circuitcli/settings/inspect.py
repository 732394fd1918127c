"""How an SAE is looked at."""

from pydantic import Field

from circuitcli.settings.section import Section


class InspectSettings(Section):
    """How an SAE is looked at."""

    tokens: int = Field(2048, ge=16, le=2**24)
    """Tokens on which an SAE is measured; very wide ones on fewer."""
