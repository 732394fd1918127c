"""How good a sparse coder is: reconstruction, densities, spliced loss, fit to a model, health of weights, geometry."""
