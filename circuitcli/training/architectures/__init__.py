"""How each architecture is trained: one file each, with what differs from `trainable`."""
