"""Language models: where their residual stream is, hooks, partial execution, loading."""
