"""What attention does in a circuit: edges by the heads that they pass, scores by pairs of sources."""
