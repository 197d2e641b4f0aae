"""BERT- and RoBERTa-like encoders with a masked-language-model head, on the networks of transformers.

Symbols: B sequences of T tokens, D width, V vocabulary size, n selected tokens of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaModel

from bench.backbones import MaskedLanguageModel
from bench.models import Model

NOT_SELECTED = -100
INIT_STD = 0.02


class TokenMask(NamedTuple):
    """A masked batch: `input_ids` (B, T) as the encoder sees them, `labels` (B, T) the true ids, -100 elsewhere."""

    input_ids: Tensor
    labels: Tensor


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy averaged over all selected tokens of the batch; 0, with a graph, when none is selected.

    `logits` (..., V); `labels` (...) with -100 where a token is not selected.
    """
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=NOT_SELECTED, reduction="sum")
    return total / (labels != NOT_SELECTED).sum().clamp(min=1)


class TextModel(Model):
    """A BERT or RoBERTa encoder with its masked-language-model head, a classifier on the first token, or neither.

    The decoder's output projection is tied to the word embeddings. `dropout` applies to hidden states, attention
    weights and the classifier (dropout, linear, tanh, dropout, linear). Inputs may hold "token_type_ids" (B, T) too,
    where the backbone knows segments; padding stands at the end.
    """

    POSITIONS = ("position_embeddings.weight",)
    TOKENS = ("token_type_embeddings.weight",)

    encoder: BertModel | RobertaModel
    backbone: MaskedLanguageModel
    is_ordinary: Tensor

    def __init__(
        self, backbone: MaskedLanguageModel, *, classes: int | None, decoder: bool, dropout: float | None
    ) -> None:
        super().__init__()
        self.backbone, self.width = backbone, backbone.width
        rate = backbone.dropout if dropout is None else dropout
        # Built whole even where the decoder is dropped, so that the encoder's random weights are the same either way.
        encoder, masked_head = _network(backbone, rate)
        self.encoder = encoder
        self.head = None if classes is None else _classifier(backbone.width, classes, rate)
        self.decoder = masked_head if decoder else None
        is_ordinary = torch.ones(backbone.vocabulary, dtype=torch.bool)
        is_ordinary[list(backbone.special_ids)] = False
        self.register_buffer("is_ordinary", is_ordinary, persistent=False)

    def features(self, inputs: dict[str, Tensor], embeddings: Tensor | None = None) -> Tensor:
        input_ids = inputs["input_ids"] if embeddings is None else None
        return self._hidden(inputs, input_ids, embeddings)[:, 0]

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        words: Tensor = self.encoder.embeddings.word_embeddings(inputs["input_ids"])
        return words

    def draw_mask(self, inputs: dict[str, Tensor], generator: torch.Generator) -> TokenMask:
        """Select ordinary tokens independently; 80 % become the mask token, 10 % any id of the vocabulary, 10 % stay.

        Source: Devlin et al. 2019; special and pad tokens are never selected.
        """
        input_ids = inputs["input_ids"]
        shape, device = input_ids.shape, input_ids.device
        selection, fate = torch.rand(2, *shape, generator=generator, dtype=torch.float32).to(device)
        random_ids = torch.randint(self.backbone.vocabulary, shape, generator=generator).to(device)
        ordinary = self.is_ordinary[input_ids] & inputs["attention_mask"].bool()
        selected = ordinary & (selection < self.backbone.mask_ratio)
        masked = input_ids.masked_fill(selected & (fate < 0.8), self.backbone.mask_id)
        masked = torch.where(selected & (fate >= 0.9), random_ids, masked)
        return TokenMask(masked, input_ids.masked_fill(~selected, NOT_SELECTED))

    def masked_predictions(self, inputs: dict[str, Tensor], mask: TokenMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        hidden = self._hidden(inputs, mask.input_ids)
        # The vocabulary projection is most of a small model's work: only where it is needed.
        logits: Tensor = self.decoder(hidden[mask.labels != NOT_SELECTED])
        return logits

    def masked_loss(self, inputs: dict[str, Tensor], mask: TokenMask) -> Tensor:
        return masked_token_loss(self.masked_predictions(inputs, mask), mask.labels[mask.labels != NOT_SELECTED])

    def _hidden(self, inputs: dict[str, Tensor], input_ids: Tensor | None, embeddings: Tensor | None = None) -> Tensor:
        attention_mask = inputs["attention_mask"]
        # Told, because RoBERTa would count the tokens that are not padding: differently where embeddings are given, and
        # where masking has put the padding token in the place of a word.
        first, length = self.backbone.first_position, attention_mask.shape[1]
        outputs = self.encoder(
            input_ids=input_ids,
            attention_mask=attention_mask,
            token_type_ids=inputs.get("token_type_ids"),
            position_ids=torch.arange(first, first + length, device=attention_mask.device)[None],
            inputs_embeds=embeddings,
        )
        hidden: Tensor = outputs.last_hidden_state
        return hidden


def _network(backbone: MaskedLanguageModel, dropout: float) -> tuple[BertModel | RobertaModel, nn.Module]:
    """The encoder, without a pooler, and the masked-language-model head, tied to its word embeddings."""
    settings: dict[str, Any] = {
        "vocab_size": backbone.vocabulary,
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "intermediate_size": backbone.mlp_width,
        "hidden_act": "gelu",
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": backbone.positions or backbone.max_length + backbone.first_position,
        "type_vocab_size": backbone.segments,
        "initializer_range": INIT_STD,
        "layer_norm_eps": backbone.norm_eps,
        "pad_token_id": backbone.pad_id,
        # Eager attention would take its softmax in float32 even in a float64 model.
        "attn_implementation": "sdpa",
    }
    if backbone.network == "roberta":
        roberta = RobertaForMaskedLM(RobertaConfig(**settings))
        return roberta.roberta, roberta.lm_head
    bert = BertForMaskedLM(BertConfig(**settings))
    return bert.bert, bert.cls


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    layers = nn.Linear(width, width), nn.Linear(width, classes)
    for layer in layers:
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout(dropout), layers[0], nn.Tanh(), nn.Dropout(dropout), layers[1])
