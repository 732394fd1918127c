"""Transformers whose every weight is set by hand, so that the circuit behind what they do is known."""
