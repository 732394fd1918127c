"""Circuits in the files of other programs: written for them, and read from them. Needs no torch."""
