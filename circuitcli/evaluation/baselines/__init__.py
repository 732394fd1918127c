"""Dictionaries that need no training by gradients, in the form of sparse coders: what an SAE has to beat."""
