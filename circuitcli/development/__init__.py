"""What of a model's features and circuits changes while it is trained."""
