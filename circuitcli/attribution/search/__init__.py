"""Circuits of one prompt by resampling: what is not kept takes values from other text, and the next token stays.

After the circuit search of Peter Lai's gpt-circuits: nodes hook point by hook point, then the edges between them.
"""
