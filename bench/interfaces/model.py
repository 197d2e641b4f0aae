"""The network that training, methods and evaluation see, whatever library it is built on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal, ParamSpec

import torch
from torch import Tensor, nn

Modality = Literal["image", "text"]
Inputs = Any
"""What a `Model` reads: a float tensor (B, 3, H, W) of images, a dict of (B, T) tensors for text."""

P = ParamSpec("P")
Resampling = Literal["bicubic", "antialiased"]
"""How a library fits positions to another image size: both bicubic, the second with an anti-aliasing filter."""
Role = Literal["matrix", "embedding", "bias", "norm", "token", "position"]
"""What a parameter is.

Dimension 0 of a `matrix`, which may be a convolution's, is the output unit. `embedding` is the table of words, `norm`
the gain of a norm or another vector that scales, `token` a token's own vector or the table of token types.
"""


class Model(nn.Module, ABC):
    """An encoder f_θ with an optional decoder g_φ and classifier head.

    `encoder` includes the final layer norm; `width` D is the size of its features. Inputs are normalised float images
    (B, 3, H, W), or text as {"input_ids": (B, T), "attention_mask": (B, T)}, both long, for pairs of sentences with
    "token_type_ids" (B, T) where the network knows segments. Text may also hold "parts", from
    `bench.data.examples.by_length`: it is then computed part by part, which changes nothing but rounding and dropout.
    """

    # The next five are set by a class, or by its objects where it computes several kinds of network.
    POSITIONS: tuple[str, ...]
    """How the names end of parameters with the role `position`."""
    TOKENS: tuple[str, ...]
    """How the names end of parameters with the role `token`."""
    BLOCKS: str
    """Where the encoder keeps its transformer blocks: `<BLOCKS>.<number>.…` are the names of their parameters in it."""
    ATTENTION: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """How the names of attention's input matrices end, and which projections their rows hold, in this order: a matrix
    (3·D, D) of ("query", "key", "value") has D rows for each."""
    FINAL: tuple[str, ...] = ()
    """How the names begin, within the encoder, of what comes after the blocks: its final norm."""
    GAINS: ClassVar[tuple[str, ...]] = ()
    """How the names end of gains on channels that no norm holds. They have the role of a norm's gains."""
    COMPILED: ClassVar[tuple[Callable[..., Tensor], ...]]
    """The functions of a transformer block and its tensors that `compile_blocks` compiles."""

    modality: ClassVar[Modality]
    encoder: nn.Module
    decoder: nn.Module | None
    head: nn.Module | None
    width: int

    def __init__(self) -> None:
        super().__init__()
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    @abstractmethod
    def features(self, inputs: Inputs, embeddings: Tensor | None = None) -> Tensor:
        """Compute the features of the unmasked input: (B, D).

        They are the first token after the final norm, or the last one that is no padding where tokens see only those
        before them. `embeddings`, in the form `embed` returns, stand in for the input's own.
        """

    @abstractmethod
    def embed(self, inputs: Inputs) -> Tensor:
        """Embed patches or words (B, T, D), before positions are added. Images have no CLS token here."""

    @abstractmethod
    def draw_mask(self, inputs: Inputs, generator: torch.Generator) -> Any:
        """Draw a mask for this batch, as a tuple of tensors.

        The mask's property `targets` counts the values that are to be predicted, over which `masked_loss` is a mean.
        The mask lies on the host, where `generator` lives, too. The draws are made in the order of the examples and
        depend neither on padding nor on how a batch is split among calls with one generator. Text must lie on the host;
        of images only the number is read.
        """

    @abstractmethod
    def masked_predictions(self, inputs: Inputs, mask: Any) -> Tensor:
        """Predict the masked input with the decoder.

        Images: all patches (B, K, patch·patch·3). Text: logits (n, vocabulary) at the n positions of the mask. A
        decoder-only network masks nothing, and predicts the token behind each position.
        """

    @abstractmethod
    def masked_loss(self, inputs: Inputs, mask: Any) -> Tensor:
        """Compute L_MAE of the batch: a scalar."""

    def logits(self, inputs: Inputs, embeddings: Tensor | None = None) -> Tensor:
        """Compute class scores (B, classes)."""
        assert self.head is not None, "this model was built without classes"
        scores: Tensor = self.head(self.features(inputs, embeddings))
        return scores

    def resampled(self, name: str, tensor: Tensor, method: Resampling) -> Tensor:
        """Resample a tensor of a weights file to this model's image size.

        Only a table of positions changes; all else is returned as it is.
        """
        return tensor

    def compile_blocks(self) -> None:
        """Have torch compile the transformer blocks for training.

        In eval mode they run as they are written. No name of a parameter changes. Each shape is compiled by itself.
        """
        self._compiled = {function: torch.compile(function, dynamic=False) for function in self.COMPILED}

    def _run(self, function: Callable[P, Tensor]) -> Callable[P, Tensor]:
        """Return the function, or in training its compiled form."""
        return self._compiled.get(function, function) if self.training else function

    def depths(self) -> dict[str, int]:
        """Return the depth of every parameter by its name.

        Embeddings have 0, block i has i + 1, and what follows the last block, head and decoder included, one more.
        """
        # A network of two blocks: encoder.pos_embed 0, encoder.blocks.0.norm1.weight 1, encoder.blocks.1.norm1.weight
        # 2, encoder.norm.weight 3, head.weight 3.
        blocks = f"encoder.{self.BLOCKS}."
        names = [name for name, _ in self.named_parameters()]
        depths = {name: int(name[len(blocks) :].split(".")[0]) + 1 for name in names if name.startswith(blocks)}
        last = max(depths.values(), default=0) + 1
        final = tuple(f"encoder.{part}" for part in self.FINAL)

        def outside(name: str) -> int:
            return last if not name.startswith("encoder.") or name.startswith(final) else 0

        return {name: depths.get(name, outside(name)) for name in names}

    def attention(self) -> dict[str, tuple[str, ...]]:
        """Return the matrices that make queries, keys and values, and which of them their rows hold."""
        names = [name for name, _ in self.named_parameters() if name.startswith("encoder.")]
        return {name: parts for name in names for end, parts in self.ATTENTION if name.endswith(f".{end}")}

    def roles(self) -> dict[str, Role]:
        """Return the role of every parameter by its name.

        Frozen ones are included; weight decay is decided by the role.
        """
        # Gains of norms and embedding tables are recognised by their module, all else by name. The order matters: a
        # norm's bias is a bias, and tables of token types and positions are embeddings with a role of their own. What
        # is left is a matrix, unless it has fewer than two dimensions.
        gains = {id(module.weight) for module in self.modules() if isinstance(module, nn.LayerNorm)}
        tables = {id(module.weight) for module in self.modules() if isinstance(module, nn.Embedding)}

        def role(name: str, parameter: nn.Parameter) -> Role:
            if id(parameter) in gains or name.endswith(self.GAINS):
                return "norm"
            if name.endswith(".bias"):
                return "bias"
            if name.endswith(self.TOKENS):
                return "token"
            if name.endswith(self.POSITIONS):
                return "position"
            if id(parameter) in tables:
                return "embedding"
            return "matrix" if parameter.ndim > 1 else "norm"

        return {name: role(name, parameter) for name, parameter in self.named_parameters()}
