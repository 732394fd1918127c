"""A benchmark with known features: data as SynthSAEBench makes it, coders trained on it, and how much they found."""
