"""Attributions from features to features as files of safetensors: for whoever reads them, and to go on with."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from circuitcli.runs import write_error
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.validation.feature_edges import Attributions


def stored(found: Attributions, path: Path, *, at_most: int) -> int:
    """The number of edges that the file now holds: all as a matrix, or of more than ``at_most`` the largest.

    The matrix is ``attributions`` (d_source, d_target); of the largest ``source``, ``target`` and ``attribution``.
    """
    if found.n_possible <= at_most:
        whole = torch.zeros(len(found.live_units), len(found.live_features))
        whole[found.units[:, None], found.features] = found.values.float()
        _write({"attributions": whole}, path)
        return found.n_possible
    values = found.values.flatten()
    values, numbers = values.topk(min(at_most, int((values > 0).sum())))
    units, features = numbers // len(found.features), numbers % len(found.features)
    named = {"source": found.units[units].int(), "target": found.features[features].int()}
    _write({**named, "attribution": values.float()}, path)
    return len(values)


def kept(path: Path, make: Callable[[], Attributions], *, resumes: bool) -> Attributions:
    """What an earlier, killed run of the same work left in the file, or what is made now, and kept there."""
    if resumes and (found := _read(path)) is not None:
        return found
    made = make()
    _write(vars(made), path)
    return made


def _write(tensors: dict[str, Tensor], path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(tensors, partial)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from None


def _read(path: Path) -> Attributions | None:
    try:
        return Attributions(**load_file(path))
    except (OSError, SafetensorError, TypeError):
        return None
