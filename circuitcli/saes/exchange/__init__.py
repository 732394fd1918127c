"""SAEs of other libraries: one file per format, and what all formats share."""
