"""One small file for each family of models: where its parts are."""
