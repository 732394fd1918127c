"""Language models that say what features mean, and scores of what they say."""
