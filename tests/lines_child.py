"""Runs lines of `circuit` as they stand, one after the other, in one process that reaches no hub.

Started by test_lines.py. The data set `NeelNanda/pile-10k` is stood in for by the topics of Python's own documentation;
``A,B`` in a line are two features of the graph that was made before. Prints what became of each line, as JSON.
"""

import io
import json
import shlex
import sys
from contextlib import redirect_stderr, redirect_stdout
from pydoc_data.topics import topics
from types import SimpleNamespace

from circuitcli.cli.app import run
from circuitcli.text import data_sets


class Rows(list):
    """What streaming a data set gives, as far as it is used."""

    def skip(self, n: int) -> "Rows":
        """The rows from the n-th on."""
        return Rows(self[n:])


def load_dataset(name: str, config: str | None, **options: object) -> Rows:
    """In place of the library's own function."""
    assert (name, config, options) == ("NeelNanda/pile-10k", None, {"split": "train", "streaming": True})
    return Rows({"text": text} for text in topics.values())


def two_features(printed: str, hook: str) -> str:
    """Two features of a hook point that a graph has."""
    nodes = [json.loads(line) for line in printed.splitlines()]
    ids = [node["id"] for node in nodes if node["kind"] == "node" and node["id"].startswith(f"{hook}/")]
    indices = {name.split("/")[1].split("@")[0] for name in ids if "error" not in name}
    return ",".join(sorted(indices)[:2])


def main(lines: list[str]) -> list[dict[str, object]]:
    """What each line ended with and printed."""
    data_sets.import_module = lambda name: SimpleNamespace(load_dataset=load_dataset)  # type: ignore[attr-defined]
    data_sets.hub_answers = lambda: True  # type: ignore[attr-defined]
    found: list[dict[str, object]] = []
    for line in lines:
        if "A,B" in line:
            line = line.replace("A,B", two_features(str(found[-1]["stdout"]), "resid.3"))
        stdout, stderr = io.StringIO(), io.StringIO()
        with redirect_stdout(stdout), redirect_stderr(stderr):
            status = run(shlex.split(line)[1:])
        found.append({"line": line, "status": status, "stdout": stdout.getvalue(), "stderr": stderr.getvalue()})
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
