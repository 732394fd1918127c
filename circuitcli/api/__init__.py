"""What `import circuitcli` offers: plain texts, tensors and paths in, frozen values out; no run directory is needed."""
