"""Data whose features are known: toys to train coders on, and what the coders find of them."""
