"""Attribution graphs: direct effects in the model with attention patterns and norm denominators held constant."""
