"""What every sparse coder is: it reads one hook point and writes one or more, by codes of which few are not zero.

A sparse autoencoder (SAE) writes what it reads. A transcoder reads ``mlp_in.l`` and writes ``mlp.l``; a layer of a
cross-layer transcoder (CLT) writes ``mlp.l``, ``mlp.l+1``, ... What is written and not explained is the error there.
"""

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from circuitcli.errors import InputError
from circuitcli.hookpoints import HookPoint
from circuitcli.saes.fast.selection import Chosen

Normalisation = Literal["none", "centre", "layer-norm", "rms-norm"]
EPSILON = 1e-5
# 128 MiB of float32.
CODES_AT_ONCE = 2**25


class Frame(NamedTuple):
    """What a normalising SAE takes off an activation before encoding and puts back after decoding.

    Both are constants in every derivative and are never ablated.
    """

    mean: Float[Tensor, "*batch 1"] | Float[Tensor, "*batch d_in"]
    scale: Float[Tensor, "*batch 1"]


class Coded(NamedTuple):
    """An activation in parts: ``x == decode(codes, frame) + error``."""

    codes: Float[Tensor, "*batch d_sae"]
    error: Float[Tensor, "*batch d_in"]
    frame: Frame | None


@dataclass(frozen=True)
class SaeConfig:
    """What an SAE is and expects; kept in its config.json.

    A transcoder reads ``hook`` and predicts ``target``, of width ``d_out``, where its kind of file names one; ``skip``
    adds a linear map of the input to that (Paulo et al. 2025, arXiv:2501.18823). A layer of a cross-layer transcoder
    predicts ``further`` hook points too, by a decoder for each.
    """

    hook: HookPoint
    d_in: int
    d_sae: int
    normalisation: Normalisation = "none"
    subtract_decoder_bias: bool = True
    target: HookPoint | None = None
    d_out: int | None = None
    skip: bool = False
    further: tuple[HookPoint, ...] = ()

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """What it predicts, in the order of its decoders."""
        return (self.target or self.hook, *self.further)

    def cut(self, hooks: Container[HookPoint]) -> "SaeConfig":
        """The config of a coder that writes only those of its hook points that are among ``hooks``.

        Raises ValueError if none is.
        """
        kept = [hook for hook in self.writes if hook in hooks]
        if not kept:
            raise ValueError(f"the coder at {self.hook} writes none of these hook points")
        return self if self.target is None else replace(self, target=kept[0], further=tuple(kept[1:]))

    def content(self) -> dict[str, Any]:
        """As config.json holds it: hook points by name."""
        told = {name: str(value) if isinstance(value, HookPoint) else value for name, value in vars(self).items()}
        further = told.pop("further")
        return {**told, "further": [str(hook) for hook in further]} if further else told

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> "SaeConfig":
        """The config of such a content, which may hold more. Raises KeyError if it lacks something."""
        values = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        hooks = {name: HookPoint.parse(values[name]) for name in ("hook", "target") if values.get(name) is not None}
        values["further"] = tuple(HookPoint.parse(name) for name in values.get("further") or ())
        return cls(**{"hook": content["hook"], "d_in": content["d_in"], "d_sae": content["d_sae"], **values, **hooks})


def strongest(codes: Float[Tensor, "position ..."]) -> Float[Tensor, "..."]:
    """Each feature's activation where it is furthest from zero: its largest, where codes are not negative."""
    place = codes.abs().argmax(dim=0, keepdim=True)
    return codes.gather(0, place)[0]


def nonzero(codes: Float[Tensor, "row d_sae"], *, first: int = 0) -> Chosen:
    """The codes that are not zero, row after row; rows count from ``first`` on."""
    rows, features = codes.nonzero(as_tuple=True)
    return Chosen(codes[rows, features], features, rows + first)


class SparseCoder(nn.Module, ABC):
    """Encoder, decoders and the way back to the activations.

    W_enc (d_in, d_sae), b_enc (d_sae,), W_dec (d_sae, d_out), b_dec (d_out,), with a skip W_skip (d_out, d_in). Of the
    n-th further hook point that it writes: W_dec_n, b_dec_n, W_skip_n, of the same shapes. Subclasses say how codes are
    made sparse.
    """

    architecture: ClassVar[str]
    # Whether codes depend on earlier positions too: activations are then (..., position, d_in), of one text each.
    reads_context: ClassVar[bool] = False
    # Whether a code depends on its own pre-activation alone, but for which codes are zero.
    elementwise: ClassVar[bool] = True
    # What the constructor takes beside the config, and config.json holds.
    option_names: ClassVar[tuple[str, ...]] = ()
    # The folder or file that it was read from, and the digest of all that was read; None where it was made here.
    origin: Path | None = None
    digest: str | None = None

    def __init__(self, config: SaeConfig) -> None:
        super().__init__()
        self.config = config
        self.W_enc = nn.Parameter(torch.zeros(config.d_in, config.d_sae))
        self.b_enc = nn.Parameter(torch.zeros(config.d_sae))
        self.W_dec = nn.Parameter(torch.zeros(config.d_sae, self.d_out))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        if config.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, config.d_in))
        for number in range(1, len(config.writes)):
            for name in self.writing_names(0):
                self.register_parameter(f"{name}_{number}", nn.Parameter(torch.zeros_like(getattr(self, name))))

    @property
    def hook(self) -> HookPoint:
        """Where it reads."""
        return self.config.hook

    @property
    def reads(self) -> tuple[HookPoint, ...]:
        """All hook points that it reads: one, but for a crosscoder."""
        return (self.hook,)

    def joined(self, x: Mapping[HookPoint, Float[Tensor, "*batch _"]]) -> Float[Tensor, "*batch d_in"]:
        """What it encodes, of the activations at all that it reads."""
        return x[self.hook]

    @property
    def target(self) -> HookPoint:
        """What it reconstructs: what it reads, or a transcoder's output; of several the first."""
        return self.config.target or self.config.hook

    @property
    def writes(self) -> tuple[HookPoint, ...]:
        """All hook points that it reconstructs, in the order of its decoders."""
        return self.config.writes

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts another hook point than it reads."""
        return self.config.writes != (self.config.hook,)

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.config.d_in

    @property
    def d_out(self) -> int:
        """Width of what it reconstructs."""
        return self.config.d_out or self.config.d_in

    @property
    def d_sae(self) -> int:
        """Number of features."""
        return self.config.d_sae

    def extra_repr(self) -> str:
        """What people are shown of it."""
        written = "" if not self.is_transcoder else f" -> {' '.join(map(str, self.writes))}"
        return f"{self.hook}{written}, {self.d_in} -> {self.d_sae} features"

    def writing_names(self, number: int) -> tuple[str, ...]:
        """Names of the parameters that write the hook point of this number among `writes`."""
        names = ("W_dec", "b_dec", "W_skip") if self.config.skip else ("W_dec", "b_dec")
        return names if number == 0 else tuple(f"{name}_{number}" for name in names)

    def decoder(self, hook: HookPoint) -> Float[Tensor, "d_sae d_out"]:
        """The decoder of a hook point that it writes."""
        return self._writing("W_dec", hook)

    def decoder_bias(self, hook: HookPoint) -> Float[Tensor, " d_out"]:
        """The bias of a hook point that it writes."""
        return self._writing("b_dec", hook)

    def skip(self, x: Float[Tensor, "*batch d_in"], hook: HookPoint) -> Float[Tensor, "*batch d_out"] | None:
        """What its skip carries from what it reads to a hook point that it writes; None without a skip."""
        return x @ self.skip_weight(hook).T if self.config.skip else None

    def skip_weight(self, hook: HookPoint) -> Float[Tensor, "d_out d_in"]:
        """Of one with a skip, the matrix that carries to a hook point that it writes."""
        return self._writing("W_skip", hook)

    def _writing(self, name: str, hook: HookPoint) -> Tensor:
        number = self.writes.index(hook)
        found: Tensor = getattr(self, name if number == 0 else f"{name}_{number}")
        return found

    @property
    def rows_at_once(self) -> int:
        """Of how many tokens the codes may be in memory at once, where those of more are not needed."""
        return max(1, CODES_AT_ONCE // self.d_sae)

    @property
    def options(self) -> dict[str, Any]:
        """What the architecture needs beside the config."""
        return {name: getattr(self, name) for name in self.option_names}

    @abstractmethod
    def sparsify(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Codes from pre-activations."""

    def frame(self, x: Float[Tensor, "*batch d_in"]) -> Frame | None:
        """What is taken off this activation before encoding, as constants; None if nothing is."""
        return self.normal_frame(x)

    def normal_frame(self, x: Float[Tensor, "*batch d_in"]) -> Frame | None:
        """What normalisation takes off.

        layer-norm: mean and the unbiased standard deviation, plus 1e-5 where it divides, as in OpenAI's v5 SAEs.
        rms-norm: the root of the mean square. centre: the mean alone.
        """
        if self.config.normalisation == "none":
            return None
        x = x.detach()
        mean = x.mean(dim=-1, keepdim=True)
        if self.config.normalisation == "centre":
            return Frame(mean, torch.ones_like(mean))
        if self.config.normalisation == "rms-norm":
            return Frame(torch.zeros_like(mean), x.square().mean(dim=-1, keepdim=True).sqrt())
        return Frame(mean, x.std(dim=-1, keepdim=True))

    def pre_activations(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Encoder output before it is made sparse."""
        return self.centred(x) @ self.W_enc + self.b_enc

    def centred(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """The activation as the encoder sees it: normalised, and without the decoder's bias if that is the rule."""
        frame = self.normal_frame(x)
        if frame is not None:
            x = (x - frame.mean) / self._divisor(frame)
        return x - self.b_dec if self.config.subtract_decoder_bias else x

    def _divisor(self, frame: Frame) -> Float[Tensor, "*batch 1"]:
        return frame.scale + EPSILON if self.config.normalisation == "layer-norm" else frame.scale

    def divisor(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"] | None:
        """What the activation is divided by before it is encoded, a constant in every derivative; None for one."""
        frame = self.normal_frame(x)
        return None if frame is None else self._divisor(frame)

    def slopes(
        self, codes: Float[Tensor, "*batch n"], features: Int[Tensor, " n"] | slice = slice(None)
    ) -> Float[Tensor, "*batch n"]:
        """Derivative of each of some features' codes by its own pre-activation, where a coder is `elementwise`."""
        return (codes != 0).to(codes)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Codes of activations."""
        return self.sparsify(self.pre_activations(x))

    def active(self, x: Float[Tensor, "row d_in"]) -> Chosen:
        """The codes of activations that are not zero, row after row: `encode` without keeping all codes.

        Rows of a coder that reads context are those of one text.
        """
        pieces = [x] if self.reads_context else x.split(self.rows_at_once)
        parts = [nonzero(self.encode(piece), first=number * self.rows_at_once) for number, piece in enumerate(pieces)]
        return Chosen(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def decode(
        self, codes: Float[Tensor, "*batch d_sae"], frame: Frame | None = None, *, hook: HookPoint | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Reconstruction of an activation, in its own scale; of what a transcoder predicts, without the skip.

        hook: which one of those that it writes; the first unless given.
        """
        place = self.target if hook is None else hook
        decoded = codes @ self.decoder(place) + self.decoder_bias(place)
        return decoded if frame is None else decoded * frame.scale + frame.mean

    def written_frame(self, x: Float[Tensor, "*batch d_in"]) -> Frame | None:
        """What is put back after decoding: of an SAE its frame; of what is read statistics say nothing of the rest."""
        return None if self.is_transcoder else self.frame(x)

    def reconstruct(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What it makes of an activation: the activation again, or a transcoder's prediction of its target."""
        return self.reconstruction(x, self.encode(x))

    def reconstruction(
        self, x: Float[Tensor, "*batch d_in"], codes: Float[Tensor, "*batch d_sae"]
    ) -> Float[Tensor, "*batch d_out"]:
        """`reconstruct` with codes in place of the activation's own. A transcoder's output has no frame."""
        decoded = self.decode(codes, self.written_frame(x))
        return decoded + x @ self.W_skip.T if self.config.skip else decoded

    def encode_framed(self, x: Float[Tensor, "*batch d_in"]) -> tuple[Float[Tensor, "*batch d_sae"], Frame | None]:
        """Codes, and what is put back after decoding."""
        return self.encode(x), self.written_frame(x)

    def code(self, x: Float[Tensor, "*batch d_in"]) -> Coded:
        """The activation in parts. A transcoder cannot give them: its error is not in what it reads."""
        if self.is_transcoder:
            raise TypeError(f"a transcoder from {self.hook} to {self.target} leaves no error at {self.hook}")
        codes, frame = self.encode_framed(x)
        return Coded(codes, x - self.decode(codes, frame), frame)

    def change(
        self, difference: Float[Tensor, "*batch d_sae"], frame: Frame | None, *, hook: HookPoint | None = None
    ) -> Float[Tensor, "*batch d_out"]:
        """Change of an activation that it writes, the first unless given, when its codes change by ``difference``."""
        changed = difference @ self.decoder(self.target if hook is None else hook)
        return changed if frame is None else changed * frame.scale

    def check_reads(self, widths: Mapping[HookPoint, int]) -> None:
        """Raise InputError if what it reads has other widths than these."""
        self.check_width(widths[self.hook])

    def check_width(self, d_model: int) -> None:
        """Raise InputError if the activations that it reads or writes have another width."""
        if d_model != self.d_in:
            raise InputError(
                f"the SAE at {self.hook} is for activations of width {self.d_in}, the model has {d_model}",
                hint="use SAEs that were trained on this model",
            )
        if d_model != self.d_out:
            raise InputError(
                f"the transcoder from {self.hook} to {self.target} writes activations of width {self.d_out}, "
                f"the model has {d_model}",
                hint="use transcoders that were trained on this model",
            )
