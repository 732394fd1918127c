"""Activations as SAELens's CacheActivationsRunner leaves them, made here by the same calls of `datasets`."""

from pathlib import Path

import datasets
import torch
from sae_lens import CacheActivationsRunner, CacheActivationsRunnerConfig
from support_collect import BOS, EOS, PAD, language_model

from circuitcli.hookpoints import HookPoint
from circuitcli.models import taps

HOOK = HookPoint(1, "resid")
LENGTH = 12


def contexts(n: int, *, seed: int = 0) -> torch.Tensor:
    """Contexts of letters behind BOS, some with an EOS and a BOS inside, one of padding alone."""
    ids = torch.randint(64, 90, (n, LENGTH), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = BOS
    ids[::4, 5], ids[::4, 6] = EOS, BOS
    ids[n // 2, 1:] = PAD
    return ids


def activations_of(ids: torch.Tensor, hook: HookPoint = HOOK) -> torch.Tensor:
    """What the tests' model has there, context by context."""
    adapter = language_model().adapter
    with torch.no_grad():
        return torch.cat([taps.read(adapter, row[None], None, [hook])[hook] for row in ids])


def save(folder: Path, ids: torch.Tensor, activations: torch.Tensor, *, name: str = "blocks.1.hook_resid_post") -> Path:
    """One hook point's data set, in files of ten contexts, consolidated as the runner does."""
    n, length, d_in = activations.shape
    dtype = str(activations.dtype).removeprefix("torch.")
    features = datasets.Features(
        {
            name: datasets.Array2D(shape=(length, d_in), dtype=dtype),
            "token_ids": datasets.Sequence(datasets.Value("int32"), length=length),
        }
    )
    rows = datasets.Dataset.from_dict({name: activations, "token_ids": ids.int()}, features=features)
    datasets.disable_progress_bars()
    rows.save_to_disk(folder, num_shards=-(-n // 10))
    return folder


def save_with_sae_lens(folder: Path, model: Path, ids: torch.Tensor, *, name: str, dtype: str) -> Path:
    """The same by SAELens's own runner, in buffers of two batches of four contexts; the last contexts are left over."""
    text = datasets.Dataset.from_dict({"input_ids": ids.tolist()})
    config = CacheActivationsRunnerConfig(
        dataset_path=str(folder),
        model_name=str(model),
        model_class_name="AutoModelForCausalLM",
        model_batch_size=4,
        hook_name=name,
        d_in=24,
        training_tokens=32 * ids.shape[1],
        context_size=ids.shape[1],
        new_cached_activations_path=str(folder / "cached"),
        dtype=dtype,
        device="cpu",
        buffer_size_gb=8.5 * ids.shape[1] * 24 * getattr(torch, dtype).itemsize / 1e9,
        streaming=False,
    )
    CacheActivationsRunner(config, override_dataset=text).run()
    return folder / "cached"
