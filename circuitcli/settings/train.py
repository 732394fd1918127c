"""How sparse autoencoders are trained."""

from typing import Annotated, Literal

from pydantic import Field

from circuitcli.settings.section import MOST_TOKENS, FilePath, Section, Split, Texts

# What SAEs have to beat.
Baseline = Literal["pca", "ica", "nmf", "identity", "frozen-decoder", "random-model"]
Tracker = Literal["tensorboard", "trackio", "wandb"]


class TrainSettings(Section):
    """How sparse autoencoders are trained."""

    start: FilePath | None = None
    """Coders to train on from, in place of random ones, as --sae names them: a run, a directory, FORMAT:PATH, a
    release. They keep architecture, width and, unless sae.k is set, k; hook points without one are not trained."""
    objective: Literal["local", "end-to-end", "joint"] = "local"
    """What an SAE is to keep: the activations (local), or what the model predicts when the SAE stands alone at its hook
    point (end-to-end: KL divergence in nats, each SAE for itself, on the cached text; after Braun et al. 2024,
    arXiv:2405.12241). An end-to-end step costs a pass of the model, and for each SAE one through the blocks
    behind it, forward and back. Or the model learns too (joint): its own loss on the cached text, and what the SAEs
    miss; RUN/model is then the model that they belong to."""
    regularisation: float = Field(3.0, ge=0, le=1e6)
    """Joint: weight of the mean over SAEs of the losses that they would have alone, beside the model's own in nats."""
    model_rate: float = Field(1e-4, gt=0, le=10)
    """Joint: the model's learning rate, which rises and falls as that of the SAEs."""
    local_share: float = Field(0.5, ge=0, lt=1)
    """End-to-end: share of the run, at its start, that trains locally, on shuffled rows."""
    local_weight: float = Field(25.0, ge=0, le=1e6)
    """End-to-end: weight of the share of the variance that is missed at the SAE's own hook point. The paper's objective
    is 0, with local_share=0; short runs need both."""
    downstream_weight: float = Field(0.0, ge=0, le=1e6)
    """End-to-end: weight of the share of the variance that later collected hook points miss, on average over them."""
    tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Tokens to train on; by default one pass over the cache. More than the cache holds means several passes."""
    batch_size: int | None = Field(None, ge=1, le=2**24)
    """Tokens in one optimiser step; by default 4,096, and fewer in short runs: the power of two that gives them 512
    steps, 512 tokens at least."""
    learning_rate: float | None = Field(None, gt=0, le=10)
    """Adam's step size; by default 2e-4 / sqrt(d_sae / 16384), after Gao et al. 2024, arXiv:2406.04093, times
    sqrt(24000 / steps), at least 1 and at most 8, as short runs need."""
    warmup: float = Field(0.05, ge=0, lt=1)
    """Share of the run in which the learning rate rises to its full value. Measured as for decay: 0.01, 0.05 and 0.2
    explain 0.869, 0.867 and 0.870."""
    decay: float = Field(0.3, ge=0, le=1)
    """Share of the run, at its end, in which the learning rate falls to zero. Measured at the residual stream of a 135M
    model, 950,000 tokens: 0.2, 0.3 and 0.5 explain 0.866, 0.867 and 0.869 of the variance."""
    clip: float = Field(1.0, gt=0, le=1e6)
    """Largest norm of one SAE's gradient; 1 as Anthropic trained (Conerly et al., April 2024)."""
    auxk_weight: float = Field(1 / 32, ge=0, le=1e3)
    """Weight of the loss that revives dead features (AuxK, Gao et al. 2024, arXiv:2406.04093)."""
    dead_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """A feature that was silent for so many tokens is dead; by default a tenth of the run, at most 10 million."""
    pool_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    """Rows held in memory and shuffled together; by default 262,144, or as many as fill 2 GiB with the activations of
    all hook points, but two batches at least."""
    checkpoint_tokens: int = Field(1_000_000, ge=1, le=MOST_TOKENS)
    """Tokens between two checkpoints, which are written every five minutes at least; a killed run goes on from the last
    one."""
    keep: Literal["last", "best"] = "last"
    """Which weights are kept in the end: the last, or those with the smallest loss on the held-out tokens, at which
    some 20 looks are taken over the run. Finished SAEs are measured on these tokens too. SAEs that share weights or a
    loss are kept from one step."""
    log: Annotated[tuple[Tracker, ...], Split] = ()
    """Where metrics go besides metrics.jsonl; several with commas. Each needs its package: pip install
    '.[wandb]' in the folder of this source."""
    eval_tokens: int = Field(16_384, ge=2, le=MOST_TOKENS)
    """Held-out tokens on which the finished SAEs are measured."""
    loss_tokens: int = Field(4096, ge=0, le=MOST_TOKENS)
    """How many of these the model reads, to measure its loss with each SAE; 0 for none."""
    compound: bool = False
    """Also measure the model's loss with all finished SAEs in place at once, beside what each costs alone (a
    'replacement' record)."""
    baselines: Annotated[tuple[Baseline, ...], Split] = ()
    """With --eval, what is measured beside each SAE with as many codes per token: principal (pca) and independent
    components (ica), non-negative factors (nmf), the dimensions themselves (identity), a topk SAE whose decoder stays
    random (frozen-decoder), and one of a copy of the model with random weights, on that copy (random-model)."""
    baseline_tokens: int = Field(131_072, ge=1, le=MOST_TOKENS)
    """Most tokens that a baseline is made from, of those that SAEs are trained on; ica takes 32,768 at most, nmf
    16,384."""
    autocast: bool = False
    """Multiply in bfloat16, which many processors do several times as fast; weights, sums and Adam stay in float32."""
    tf32: bool = True
    """On NVIDIA GPUs multiply in TF32 while training, which keeps 10 bits of each factor; measures stay in float32."""
    parallel: Literal["data", "hooks"] = "data"
    """What several processes share out: the rows of each batch (data), or the SAEs (hooks)."""
    sweep: Texts = ()
    """NAME=VALUE,VALUE: train a variant for each value side by side on the same batches, and compare them; with several
    sweeps, for all combinations. The run's own SAEs stay; variants are named by --sae RUN/saes/sweep/NAME=VALUE."""
