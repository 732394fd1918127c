"""Records about a model that was trained here, and about the checkpoints of a training."""

from circuitcli.records.base import Record
from circuitcli.schema import AnyPath, Count, HookNames, Number, PathInRun, Text, UnitName, Word


class ModelRecord(Record):
    """A language model that was trained, a Hugging Face directory at ``path``; `circuit collect` takes it from a pipe.

    validation_loss: of the stored weights, nats per held-out token; beside it those of two guesses. text: the source
    that it was trained on, ``field`` of its records.
    """

    kind: str = "model"
    path: AnyPath
    n_parameters: Count
    validation_loss: Number
    unit: UnitName
    bits_per_byte: Number | None = None
    uniform_loss: Number | None = None
    unigram_loss: Number | None = None
    n_tokens_seen: Count | None = None
    n_training_tokens: Count | None = None
    n_validation_tokens: Count | None = None
    step: Count | None = None
    digest: Word | None = None
    text: Text | None = None
    field: Text | None = None


class CheckpointRecord(Record):
    """A moment of a training.

    Of `circuit pretrain` a Hugging Face directory, whose ``path`` is relative to that of the ``model`` record. Of
    `circuit develop` a run directory below the run, with activations and coders of ``hooks`` of the ``model``;
    ``tokens`` is the digest of the token ids of all rows, which is one for all checkpoints: rows are aligned.
    """

    kind: str = "checkpoint"
    name: Word
    step: Count | None = None
    path: PathInRun
    validation_loss: Number | None = None
    unit: UnitName | None = None
    model: AnyPath | None = None
    revision: Word | None = None
    hooks: HookNames | None = None
    n_tokens: Count | None = None
    tokens: Word | None = None
