"""TopK SAEs of gpt-circuits' widths, as its code begins them, for ``circuit train --from``.

    python -m tests.bench.scalar_start DIRECTORY --widths 512,1024,1536,2048,2560 [--shared] [--d-model 64] [--k 10]

Decoder rows are uniform between plus and minus sqrt(6 / d_model) (Kaiming, in PyTorch's default), the encoder is their
transpose, both biases are zero, and nothing is scaled by the activations. --shared: each hook point has the first rows
of one matrix, as staircases have them. One SAE for each width, at the inputs of the blocks and behind the last one.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from circuitcli.hookpoints import HookPoint
from circuitcli.saes import files
from circuitcli.saes.base import SaeConfig
from circuitcli.saes.topk import TopKSae


def started(rows: Tensor, *, hook: HookPoint, k: int) -> TopKSae:
    """An SAE with these decoder rows."""
    d_sae, d_model = rows.shape
    sae = TopKSae(SaeConfig(hook=hook, d_in=d_model, d_sae=d_sae), k=k)
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
    return sae


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--widths", default="512,512,512,512,512")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    widths = [int(width) for width in options.widths.split(",")]
    widest = nn.init.kaiming_uniform_(torch.empty(max(widths), options.d_model))
    for layer, width in enumerate(widths):
        rows = widest[:width] if options.shared else nn.init.kaiming_uniform_(torch.empty(width, options.d_model))
        hook = HookPoint.parse(f"resid.{layer - 1}" if layer else "resid_pre.0")
        files.save(started(rows, hook=hook, k=options.k), options.directory / str(hook))


if __name__ == "__main__":
    main()
