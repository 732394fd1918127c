"""Whether a circuit is true: run with everything else ablated, with itself ablated, without each node, beside chance.
"""
