"""How the model that ships with the package was made: ``python -m circuitcli.pretraining --help``."""
