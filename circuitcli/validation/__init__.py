"""Whether a circuit is true: run alone, run without it, run without each of its nodes, and compared with chance."""
