"""How many tokens a model reads at once."""

from typing import Any


def window(config: Any) -> int | None:
    """The longest text of a model in tokens, as its PretrainedConfig says; None for one without a limit."""
    length = getattr(config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None
