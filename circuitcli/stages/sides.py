"""The coders of all checkpoints at one hook point, as their features are compared; codes lie on the disk meanwhile."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from safetensors.torch import load_file

from circuitcli.activations.cache import ActivationCache
from circuitcli.development.comparing import OF_TOKEN, Side
from circuitcli.features.coactivation import Codes, codes_of
from circuitcli.hookpoints import HookPoint
from circuitcli.records import SaeRecord
from circuitcli.runs import make_folder
from circuitcli.saes import files
from circuitcli.saes.base import SparseCoder
from circuitcli.saes.tensor_files import save_tensors
from circuitcli.stages.checkpoint_run import CheckpointRun
from circuitcli.stages.collect import FOLDER as ACTIVATIONS
from circuitcli.stages.request import Request

# Below the run, until all is matched.
FOLDER = "codes"
# Kept in memory: a checkpoint, the one before, another seed, and the last.
_KEPT = 4


class Sides:
    """The coders of checkpoints at one hook point, by the number of the checkpoint and that of the seed."""

    def __init__(self, request: Request, runs: Sequence[CheckpointRun], hook: HookPoint) -> None:
        self._request, self._runs, self._hook = request, runs, hook
        self.of = lru_cache(_KEPT)(self._side)

    def _side(self, number: int, seed: int) -> Side:
        path, records = list(self._runs[number].coders.items())[seed]
        record = next(one for one in records.of(SaeRecord) if one.hook == str(self._hook))
        coder = files.load(path / record.path)
        cache = ActivationCache(path / ACTIVATIONS, coder.reads)
        codes = self._codes(coder, cache, record.digest)
        return Side.of(coder, codes, cache.tokens(0, codes.n_tokens).token)

    def _codes(self, coder: SparseCoder, cache: ActivationCache, digest: str) -> Codes:
        """A coder's codes, made now or before."""
        n_tokens = self._request.settings.develop.tokens
        name = hashlib.sha256(f"{digest} {n_tokens}".encode()).hexdigest()[:24]
        path = self._request.run.path / FOLDER / f"{name}.safetensors"
        if path.is_file():
            return Codes(coder.d_sae, **load_file(path))
        codes = codes_of(coder, cache, n_tokens=n_tokens)
        make_folder(path.parent)
        partial = path.with_suffix(".partial")
        save_tensors({"features": codes.features, "values": codes.values, "edges": codes.edges}, partial)
        partial.replace(path)
        return codes

    def facts(self, number: int) -> dict[str, Any]:
        """The live features of a checkpoint, and how many of them are of single tokens."""
        side = self.of(number, 0)
        live = side.codes.live
        return {
            "live": live.nonzero()[:, 0].tolist(),
            "token_level": int((live & (side.of_token >= OF_TOKEN)).sum()),
        }

    def seed(self, name: str) -> int:
        """A seed of random numbers for what has this name."""
        text = f"{self._request.settings.seed} {self._hook} {name}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
