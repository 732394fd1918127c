"""What features mean: top contexts, quantiles and densities, logit effects, labels."""
