"""Sparse autoencoders: architectures, files, running a model through them."""
