"""Training of sparse autoencoders on cached activations, and how good they are."""
