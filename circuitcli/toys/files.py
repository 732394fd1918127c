"""What is kept of a sweep: planted features and dictionaries as safetensors, numbers as a table."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from circuitcli.runs import atomic, make_folder, write_error
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.toys.ground_truth import GroundTruth
from circuitcli.toys.measures import Measured
from circuitcli.toys.stack import Stack

# How an autoencoder's numbers are told, in records and in the table.
COLUMNS = (
    *("name", "l1_weight", "ratio", "d_dict", "mmcs", "mmcs_of_live", "mmcs_with_larger", "found"),
    *("quarter_1", "quarter_2", "quarter_3", "quarter_4", "dead", "collapsed", "loss", "fvu", "l0"),
)


def numbers(one: Measured) -> dict[str, object]:
    """What a record tells of an autoencoder, by name."""
    return {
        "name": one.model.name,
        "l1_weight": one.model.l1_weight,
        "ratio": one.model.ratio,
        "d_dict": one.model.width,
        "mmcs": one.mmcs,
        "mmcs_of_live": one.mmcs_of_live,
        "mmcs_with_larger": one.mmcs_with_larger,
        "found": one.found,
        "quarters": one.quarters,
        "dead": one.dead,
        "collapsed": one.is_collapsed,
        "loss": one.loss,
        "fvu": one.fvu,
        "l0": one.l0,
    }


def write_table(measured: Sequence[Measured], path: Path) -> None:
    """Write one row for each autoencoder; what is undefined is empty."""
    with atomic(path) as stream:
        rows = csv.DictWriter(stream, COLUMNS, extrasaction="ignore", lineterminator="\n")
        rows.writeheader()
        for one in measured:
            quarters = {f"quarter_{number}": value for number, value in enumerate(one.quarters, 1)}
            told = {**numbers(one), **quarters, "collapsed": str(one.is_collapsed).lower()}
            rows.writerow({name: value for name, value in told.items() if value is not None})


def write_truth(truth: GroundTruth, path: Path) -> None:
    """Write directions and probabilities of the planted features."""
    _save({"features": truth.directions, "probabilities": truth.probabilities}, path)


def write_dictionaries(stack: Stack, path: Path) -> None:
    """Write each autoencoder's tensors, by NAME/W_enc, NAME/b_enc and NAME/W_dec; rows are features."""
    _save(
        {f"{model.name}/{name}": tensor for model, own in stack.dictionaries() for name, tensor in vars(own).items()},
        path,
    )


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    make_folder(path.parent)
    partial = path.with_name(f"{path.name}.partial")
    try:
        save_tensors(tensors, partial)
        partial.replace(path)
    except OSError as error:
        raise write_error(path, error) from None
