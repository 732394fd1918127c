"""The cache's files: HDF5 shards of activations and of tokens, written whole or not at all."""
