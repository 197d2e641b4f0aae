"""Text encoders as transformers computes them, behind the face that all models share.

`bench.specs.families` says of each family what is called what. B, T, D, V and n are those of `bench.models.text`.
"""

from __future__ import annotations

import contextlib
import json
from collections import OrderedDict
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bench.models.text import LanguageNetwork, TokenMask, classifier, in_few_sizes
from bench.specs.architectures import TransformersEncoder
from bench.specs.families import FAMILIES


def next_tokens(inputs: dict[str, Tensor]) -> TokenMask:
    """Select every token that has one behind it; nothing is masked.

    The labels are the tokens behind; padding is neither selected nor predicted.
    """
    # Example: of the texts [7 8 9] and [5 6 pad], which are the tokens 0 to 5 of the batch, the tokens 0, 1 and 3 are
    # selected, and their labels are 8, 9 and 6.
    input_ids, present = inputs["input_ids"], inputs["attention_mask"].bool()
    followed = present & pad(present[:, 1:], (0, 1), value=False)
    positions = followed.flatten().nonzero()[:, 0]
    return in_few_sizes(input_ids, positions, input_ids.flatten()[positions + 1])


def feature_tokens(hidden: Tensor, attention_mask: Tensor, causal: bool) -> Tensor:
    """Pick the token of each text that features are read from: (B, D) of (B, T, D).

    It is the first one, or the last one that is no padding in a `causal` network, where only it has seen all others.
    """
    if not causal:
        return hidden[:, 0]
    return hidden[torch.arange(len(hidden), device=hidden.device), attention_mask.sum(1) - 1]


class TransformersText(LanguageNetwork):
    """A text encoder of transformers with a decoder, a classifier, or neither.

    Encoder and decoder are transformers' own, dropout included. The decoder is the language-model head, whose output
    projection is tied to the word embeddings; the classifier is that of `TextModel`. Dimension 0 of every matrix is the
    output unit.
    """

    COMPILED = ()

    encoder: PreTrainedModel
    backbone: TransformersEncoder

    def __init__(
        self, backbone: TransformersEncoder, *, classes: int | None, decoder: bool, dropout: float | None
    ) -> None:
        super().__init__(backbone)
        self._blocks_are_compiled = False
        self._family = family = FAMILIES[backbone.family]
        self.POSITIONS, self.TOKENS = family.positions, family.tokens
        self.BLOCKS, self.FINAL, self.ATTENTION = family.blocks, family.final, family.projections
        rate = backbone.dropout if dropout is None else dropout
        # Built whole even where the decoder is dropped, so that the encoder's random weights are the same either way.
        network = _network(backbone, rate)
        self.encoder = cast("PreTrainedModel", network.base_model)
        self.head = None if classes is None else classifier(backbone.width, classes, rate)
        modules = OrderedDict((name, network.get_submodule(name)) for name in family.decoder)
        self.decoder = nn.Sequential(modules) if decoder else None

    def features(self, inputs: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        hidden = self._hidden(inputs, inputs["input_ids"] if embeddings is None else embeddings)
        return feature_tokens(hidden, inputs["attention_mask"], self._family.causal)

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        words: Tensor = self.encoder.get_input_embeddings()(inputs["input_ids"])
        return words

    def draw_mask(self, inputs: dict[str, Tensor], generator: torch.Generator) -> TokenMask:
        return next_tokens(inputs) if self._family.causal else super().draw_mask(inputs, generator)

    def masked_predictions(self, inputs: dict[str, Any], mask: TokenMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        # The vocabulary projection is most of a small model's work: only where it is needed.
        hidden = self._hidden(inputs, mask.input_ids).flatten(0, 1)
        logits: Tensor = self.decoder(hidden.index_select(0, mask.positions))
        return logits

    def compile_blocks(self) -> None:
        self._blocks_are_compiled = True
        for block in self.encoder.get_submodule(self.BLOCKS).children():
            _compile_in_training(block)

    def depths(self) -> dict[str, int]:
        depths = super().depths()
        for begin, depth in self._family.depths.items():
            depths |= {name: depth for name in depths if name.startswith(f"encoder.{begin}")}
        return depths

    def _hidden(self, inputs: dict[str, Any], words: Tensor) -> Tensor:
        """Compute all tokens after the last block: (B, T, D).

        `words` are ids (B, T) or word embeddings (B, T, …).
        """
        # A weight that is drawn anew at every pass is the same for all parts, and wherever a block reads it: DeBERTa
        # reads those of queries and keys twice. Compiled blocks would be compiled one by one for it.
        with contextlib.nullcontext() if self._blocks_are_compiled else parametrize.cached():
            return self._in_parts(inputs, words)

    def _in_parts(self, inputs: dict[str, Any], words: Tensor) -> Tensor:
        tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in inputs.items() if name in ("attention_mask", "token_type_ids")
        }
        tensors["inputs_embeds" if words.is_floating_point() else "input_ids"] = words
        parts = inputs.get("parts", ())
        if not parts:
            return self._encoded(tensors)
        # Each part by itself, then all tokens in the order of the batch; those of no part are padding, and stay 0.
        # Example: of texts of 4 and 1 tokens, T = 4, the parts are [[0 1 2 3]] and [[4]]. Computed are 5 tokens, and
        # they are put to 0, 1, 2, 3 and 4 of the 8; the tokens 5 to 7 are 0.
        flat = {name: tensor.flatten(0, 1) for name, tensor in tensors.items()}
        computed = torch.cat(
            [self._encoded({name: tensor[part] for name, tensor in flat.items()}).flatten(0, 1) for part in parts]
        )
        shape = inputs["input_ids"].shape
        tokens = computed.new_zeros(shape.numel(), computed.shape[-1])
        return tokens.index_copy(0, torch.cat([part.flatten() for part in parts]), computed).view(*shape, -1)

    def _encoded(self, tensors: dict[str, Tensor]) -> Tensor:
        hidden: Tensor = self.encoder(**tensors).last_hidden_state
        return hidden


def _network(backbone: TransformersEncoder, dropout: float) -> PreTrainedModel:
    """Build transformers' network, encoder and decoder."""
    family = FAMILIES[backbone.family]
    settings: dict[str, Any] = {theirs: getattr(backbone, field) for field, theirs in family.fields.items()}
    settings |= json.loads(backbone.config) | dict.fromkeys(family.dropouts, dropout)
    # Defaults that a small vocabulary may not have; nothing here reads them.
    settings |= dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    settings |= {
        family.fields["positions"]: backbone.positions or backbone.max_length,
        "pad_token_id": backbone.pad_id,
        "attn_implementation": family.attention,
        "use_cache": False,
        "tie_word_embeddings": True,
    }
    network_class = getattr(transformers, family.language_model)
    network: PreTrainedModel = network_class(network_class.config_class(**settings))
    _use_linear_layers(network)
    return network


def _use_linear_layers(network: nn.Module) -> None:
    """Replace GPT-2's Conv1D, a linear layer whose matrix is (in, out), by torch's (out, in)."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, Conv1D):
                layer = nn.Linear(*child.weight.shape)
                layer.load_state_dict({"weight": child.weight.T, "bias": child.bias})
                setattr(module, name, layer)


def _compile_in_training(block: nn.Module) -> None:
    # In place, since transformers' encoder calls its blocks itself; the blocks' code is one, so it is compiled once.
    plain, compiled = block.forward, torch.compile(block.forward, dynamic=False)

    def forward(*arguments: Any, **settings: Any) -> Any:
        return (compiled if block.training else plain)(*arguments, **settings)

    block.forward = forward
