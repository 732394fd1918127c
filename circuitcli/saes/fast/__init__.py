"""Sparse products, selection and screening that are faster than the plain ones and agree with them."""
