"""Networks behind one face for both modalities; timm and transformers are imported only when one is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, ParamSpec

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bench.backbones import MaskedAutoEncoder, MaskedLanguageModel
from bench.errors import InputError, nearest
from bench.files import replacing
from bench.hooks import Inputs
from bench.specs import Backbone

P = ParamSpec("P")
Role = Literal["matrix", "bias", "norm", "token", "position"]
PARTS = ("encoder", "decoder", "head")


class Model(nn.Module, ABC):
    """An encoder f_θ with, where built, its decoder g_φ and a classifier head.

    `encoder` includes the final layer norm; `width` D is the size of its features. Inputs are normalised float images
    (B, 3, H, W), or text as {"input_ids": (B, T), "attention_mask": (B, T)}, both long, for pairs of sentences with
    "token_type_ids" (B, T) where the network knows segments. Text may also hold "parts", from
    `bench.data.examples.by_length`: it is then computed part by part, which changes nothing but rounding and dropout.
    """

    POSITIONS: ClassVar[tuple[str, ...]]
    TOKENS: ClassVar[tuple[str, ...]]
    COMPILED: ClassVar[tuple[Callable[..., Tensor], ...]]
    """The functions of a transformer block and its tensors that `compile_blocks` compiles."""

    backbone: Backbone
    encoder: nn.Module
    decoder: nn.Module | None
    head: nn.Module | None
    width: int

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    @abstractmethod
    def features(self, inputs: Inputs, embeddings: Tensor | None = None) -> Tensor:
        """The first token after the final norm, of the unmasked input: (B, D).

        `embeddings`, in the form `embed` returns, stand in for the input's own.
        """

    @abstractmethod
    def embed(self, inputs: Inputs) -> Tensor:
        """Patch or word embeddings (B, T, D) before positions are added; without the CLS token for images."""

    @abstractmethod
    def draw_mask(self, inputs: Inputs, generator: torch.Generator) -> Any:
        """Draw a mask for this batch, as a tuple of tensors on the host, where `generator` lives too.

        The draws are made in the order of the examples and depend neither on padding nor on how a batch is split among
        calls with one generator. Text must lie on the host, of images only the number is asked.
        """

    @abstractmethod
    def masked_predictions(self, inputs: Inputs, mask: Any) -> Tensor:
        """What the decoder makes of the masked input.

        Images: all patches (B, K, patch·patch·3). Text: logits (n, vocabulary) at the n positions of the mask.
        """

    @abstractmethod
    def masked_loss(self, inputs: Inputs, mask: Any) -> Tensor:
        """L_MAE of the batch: a scalar."""

    def logits(self, inputs: Inputs, embeddings: Tensor | None = None) -> Tensor:
        """Class scores (B, classes)."""
        assert self.head is not None, "this model was built without classes"
        scores: Tensor = self.head(self.features(inputs, embeddings))
        return scores

    def compile_blocks(self) -> None:
        """Have torch compile the transformer blocks for training; in eval mode they run as they are written.

        No name of a parameter changes. Each shape is compiled by itself.
        """
        self._compiled = {function: torch.compile(function, dynamic=False) for function in self.COMPILED}

    def _run(self, function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        """The function itself, or what was compiled of it."""
        return self._compiled.get(function, function) if self.training else function

    def roles(self) -> dict[str, Role]:
        """The role of every parameter by its name, frozen ones included; weight decay is decided by it."""
        gains = {id(module.weight) for module in self.modules() if isinstance(module, nn.LayerNorm)}

        def role(name: str, parameter: nn.Parameter) -> Role:
            if id(parameter) in gains:
                return "norm"
            if name.endswith(".bias"):
                return "bias"
            if name.endswith(self.TOKENS):
                return "token"
            return "position" if name.endswith(self.POSITIONS) else "matrix"

        return {name: role(name, parameter) for name, parameter in self.named_parameters()}


def build(
    backbone: Backbone, *, classes: int | None = None, decoder: bool = False, dropout: float | None = None
) -> Model:
    """A randomly initialised model in training mode; every draw is from torch's default generator, which callers seed.

    `classes` adds a classifier head, `decoder` the decoder; the encoder's weights do not depend on either. `dropout`
    None keeps the backbone's own rate (images: 0).
    """
    if isinstance(backbone, MaskedAutoEncoder):
        from bench.models.image import ImageModel

        return ImageModel(backbone, classes=classes, decoder=decoder, dropout=dropout)
    if isinstance(backbone, MaskedLanguageModel):
        from bench.models.text import TextModel

        return TextModel(backbone, classes=classes, decoder=decoder, dropout=dropout)
    raise TypeError(f"no network for the backbone type {type(backbone).__name__}")


def save_weights(model: Model, path: Path) -> None:
    """Write all parameters as safetensors, atomically; tied tensors once, under their first name (the encoder's)."""
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(tensors))  # save_file would make the file unreadable to other users


def load_weights(model: Model, path: Path, parts: Sequence[str], absent: Collection[str] = ()) -> None:
    """Copy the tensors of these parts ("encoder", "decoder", "head") from a file that `save_weights` wrote.

    Other parts of the file are ignored; values are converted to the model's precision. What `absent` names may be
    missing from the file and keeps its values. Raises `InputError`, and changes nothing, where any other name of these
    parts is missing from or unknown to the model, or a shape differs.
    """
    for part in parts:
        if part not in PARTS:
            raise InputError(f"cannot load the part {part!r} of a model.{nearest(part, PARTS)}")
    prefixes = tuple(f"{part}." for part in parts)
    wanted = {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}
    for part in parts:
        if not any(name.startswith(f"{part}.") for name in wanted):
            raise InputError(f"{path}: the model was built without a {part}, so the file's cannot be loaded.")
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefixes)]  # noqa: SIM118 - not a mapping
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            wanted = {name: p for name, p in wanted.items() if name in shapes or name not in absent}
            _refuse_differences(path, {name: tuple(p.shape) for name, p in wanted.items()}, shapes)
            with torch.no_grad():
                for name, parameter in wanted.items():
                    parameter.copy_(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read as safetensors ({error}). Produce the weights again.") from error


def _refuse_differences(path: Path, wanted: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    missing, unexpected = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shared = sorted(wanted.keys() & found.keys())
    wrong = [f"{name} is {found[name]}, not {wanted[name]}" for name in shared if wanted[name] != found[name]]
    problems = [
        f"{what}: {', '.join(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", wrong))
        if names
    ]
    if problems:
        raise InputError(
            f"{path}: the weights do not fit the model. {'; '.join(problems)}. "
            "Load them into the backbone and class count they were trained with."
        )
