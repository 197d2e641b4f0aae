"""BERT-like encoders with a masked-language-model head, on transformers' BERT.

Symbols: B sequences of T tokens, D width, V vocabulary size, n selected tokens of a batch.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertForMaskedLM, BertModel

from bench.backbones import MaskedLanguageModel
from bench.models import Model

# Every prepared vocabulary starts with [PAD] [UNK] [CLS] [SEP] [MASK].
PAD_ID, MASK_ID = 0, 4
FIRST_ORDINARY_ID = 5
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
    """A BERT encoder with its masked-language-model head, a classifier on the first token, or neither.

    The decoder's output projection is tied to the word embeddings. `dropout` applies to hidden states, attention
    weights and the classifier (dropout, linear, tanh, dropout, linear).
    """

    POSITIONS = ("position_embeddings.weight",)
    TOKENS = ("token_type_embeddings.weight",)

    encoder: BertModel
    backbone: MaskedLanguageModel

    def __init__(
        self, backbone: MaskedLanguageModel, *, classes: int | None, decoder: bool, dropout: float | None
    ) -> None:
        super().__init__()
        self.backbone, self.width = backbone, backbone.width
        rate = backbone.dropout if dropout is None else dropout
        # Built whole even where the decoder is dropped, so that the encoder's random weights are the same either way.
        network = BertForMaskedLM(_config(backbone, rate))
        self.encoder = network.bert
        self.head = None if classes is None else _classifier(backbone.width, classes, rate)
        self.decoder = network.cls if decoder else None

    def features(self, inputs: dict[str, Tensor], embeddings: Tensor | None = None) -> Tensor:
        input_ids = inputs["input_ids"] if embeddings is None else None
        return self._hidden(input_ids, inputs["attention_mask"], embeddings)[:, 0]

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        words: Tensor = self.encoder.embeddings.word_embeddings(inputs["input_ids"])
        return words

    def draw_mask(self, inputs: dict[str, Tensor], generator: torch.Generator) -> TokenMask:
        """Select ordinary tokens independently; 80 % become [MASK], 10 % any id of the vocabulary, 10 % stay.

        Source: Devlin et al. 2019; special and pad tokens are never selected.
        """
        input_ids = inputs["input_ids"]
        shape, device = input_ids.shape, input_ids.device
        selection, fate = torch.rand(2, *shape, generator=generator, dtype=torch.float32).to(device)
        random_ids = torch.randint(self.backbone.vocabulary, shape, generator=generator).to(device)
        ordinary = (input_ids >= FIRST_ORDINARY_ID) & inputs["attention_mask"].bool()
        selected = ordinary & (selection < self.backbone.mask_ratio)
        masked = input_ids.masked_fill(selected & (fate < 0.8), MASK_ID)
        masked = torch.where(selected & (fate >= 0.9), random_ids, masked)
        return TokenMask(masked, input_ids.masked_fill(~selected, NOT_SELECTED))

    def masked_predictions(self, inputs: dict[str, Tensor], mask: TokenMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        hidden = self._hidden(mask.input_ids, inputs["attention_mask"])
        # The vocabulary projection is most of a small model's work: only where it is needed.
        logits: Tensor = self.decoder(hidden[mask.labels != NOT_SELECTED])
        return logits

    def masked_loss(self, inputs: dict[str, Tensor], mask: TokenMask) -> Tensor:
        return masked_token_loss(self.masked_predictions(inputs, mask), mask.labels[mask.labels != NOT_SELECTED])

    def _hidden(self, input_ids: Tensor | None, attention_mask: Tensor, embeddings: Tensor | None = None) -> Tensor:
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=embeddings)
        hidden: Tensor = outputs.last_hidden_state
        return hidden


def _config(backbone: MaskedLanguageModel, dropout: float) -> BertConfig:
    return BertConfig(
        vocab_size=backbone.vocabulary,
        hidden_size=backbone.width,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.heads,
        intermediate_size=backbone.mlp_width,
        hidden_act="gelu",
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=backbone.max_length,
        initializer_range=INIT_STD,
        layer_norm_eps=backbone.norm_eps,
        pad_token_id=PAD_ID,
        # Eager attention would take its softmax in float32 even in a float64 model.
        attn_implementation="sdpa",  # type: ignore[call-arg]
    )


def _classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    layers = nn.Linear(width, width), nn.Linear(width, classes)
    for layer in layers:
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout(dropout), layers[0], nn.Tanh(), nn.Dropout(dropout), layers[1])
