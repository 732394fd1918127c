"""Text from anywhere, cut into blocks of tokens."""
