"""BERT- and RoBERTa-like encoders with a masked-language-model head, on the networks of transformers.

Symbols: B sequences of T tokens, D width, V vocabulary size, n selected tokens of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import BertConfig, BertForMaskedLM, BertModel, RobertaConfig, RobertaForMaskedLM, RobertaModel
from transformers.models.bert.modeling_bert import BertLayer
from transformers.models.roberta.modeling_roberta import RobertaLayer

from bench.interfaces.model import Model
from bench.models.layers import attend, use_dropout
from bench.specs.architectures import LanguageModel, MaskedLanguageModel

NOT_SELECTED = -100
INIT_STD = 0.02


class TokenMask(NamedTuple):
    """A masked batch, and which of its tokens are to be predicted.

    `input_ids` (B, T) are as the encoder sees them. `positions` (n,) are indices into the B·T tokens, `labels` (n,)
    their true ids. n is rounded up to one of few sizes, so that shapes repeat: the rows behind the last selected token
    have the label -100 and count for nothing.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor

    @property
    def valid(self) -> Tensor:
        """Which rows (n,) are selected tokens."""
        return self.labels != NOT_SELECTED

    @property
    def targets(self) -> Tensor:
        """How many tokens are to be predicted."""
        return self.valid.sum()


def rounded_size(selected: int) -> int:
    """Round a number of tokens up to one of few sizes.

    The least is 8; between a power of two and the next there are eight. So 5 becomes 8, 11 stays, 17 becomes 18 and 33
    becomes 36.
    """
    # Example: 33 needs 6 bits, so the unit is 1 << 2 = 4, and 33 is rounded up to 36. Between 32 and 64 lie 8 such
    # sizes.
    unit = 1 << max(0, selected.bit_length() - 4)
    return max(8, -(-selected // unit) * unit)


def in_few_sizes(input_ids: Tensor, positions: Tensor, labels: Tensor) -> TokenMask:
    """Put a mask together, with rows added up to one of few sizes."""
    # Example: 17 selected tokens are padded with one row of label -100 to 18, a size that comes up again.
    missing = rounded_size(len(positions)) - len(positions)
    return TokenMask(input_ids, pad(positions, (0, missing)), pad(labels, (0, missing), value=NOT_SELECTED))


def masked_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Average the cross-entropy over all selected tokens of the batch.

    It is 0, with a graph, when none is selected.

    `logits` (..., V); `labels` (...) with -100 where a token is not selected.
    """
    total = cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=NOT_SELECTED, reduction="sum")
    return total / (labels != NOT_SELECTED).sum().clamp(min=1)


# ------------------------------------------------------------------------------------------------ blocks

# Besides the symbols above: the tokens of a batch stand one behind the other, N in all, in parts of b sequences of t
# tokens (see `bench.data.examples.by_length`). Hidden states are (N, D). A part's mask (b, 1, 1, t) is true where there
# is no padding; the masks also tell the parts' shapes.
#
# Example: three sequences of 5, 2 and 1 tokens, T = 5. Padded they are 15 tokens. In parts they are (1, 5) for the
# first and (2, 2) for the others, whose lengths are below three quarters of 5: N = 9 tokens are computed. Linear
# layers, norms and the MLP take (N, D) as it is; only attention looks at each part by itself.

TextBlock = BertLayer | RobertaLayer
Masks = tuple[Tensor, ...]


def block_of_all(block: TextBlock, hidden: Tensor, masks: Masks) -> Tensor:
    """Apply a transformer block to all tokens: (N, D)."""
    return _rest(block, _attended(block, hidden, masks), hidden)


def block_of_first(block: TextBlock, hidden: Tensor, masks: Masks) -> Tensor:
    """Apply a block to the first token of each sequence: (B, D). The other tokens only give keys and values."""
    first = _joined([part[:, 0] for part in _parts(hidden, masks)])
    return _rest(block, _attended(block, hidden, masks, first), first)


def block_of_selected(block: TextBlock, hidden: Tensor, masks: Masks, selected: Tensor) -> Tensor:
    """Apply a block to the tokens `selected` (n,) alone: (n, D).

    They are indices into all N tokens. Attention is computed whole, because each sequence has another number of
    selected tokens.
    """
    attended = _attended(block, hidden, masks).index_select(0, selected)
    return _rest(block, attended, hidden.index_select(0, selected))


def _attended(block: TextBlock, hidden: Tensor, masks: Masks, first: Tensor | None = None) -> Tensor:
    """Compute the attention of tokens within their sequences, not yet projected.

    The tokens are all of them, giving (N, D), or the `first` ones (B, D), giving (B, D).
    """
    attention = block.attention.self
    rate = attention.dropout.p if attention.training else 0.0
    keys, values = (_parts(projection(hidden), masks) for projection in (attention.key, attention.value))
    # A query for every token, or one for each sequence, which then attends to all tokens of its sequence.
    if first is None:
        queries = _parts(attention.query(hidden), masks)
    else:
        queries = tuple(part[:, None] for part in attention.query(first).split_with_sizes([len(m) for m in masks]))
    gathered = []
    for mask, *tokens in zip(masks, queries, keys, values, strict=True):
        b, heads, width = len(mask), attention.num_attention_heads, hidden.shape[-1]
        query, key, value = (part.view(b, -1, heads, width // heads).transpose(1, 2) for part in tokens)
        gathered.append(attend(query, key, value, mask, rate).transpose(1, 2).reshape(-1, width))
    return _joined(gathered)


def _parts(tokens: Tensor, masks: Masks) -> tuple[Tensor, ...]:
    """Split tokens (N, D) into parts (b, t, D)."""
    parts = tokens.split_with_sizes([mask.numel() for mask in masks])
    return tuple(part.view(len(mask), -1, part.shape[-1]) for part, mask in zip(parts, masks, strict=True))


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rest(block: TextBlock, attended: Tensor, residual: Tensor) -> Tensor:
    """Compute what follows attention in a block, token by token.

    This is the output projection and the MLP, each added and normalised.
    """
    hidden = block.attention.output(attended, residual)
    output: Tensor = block.output(block.intermediate(hidden), hidden)
    return output


# ------------------------------------------------------------------------------------------------ the network


class LanguageNetwork(Model):
    """What text networks have in common, whatever computes their encoder."""

    modality = "text"

    def __init__(self, backbone: LanguageModel) -> None:
        super().__init__()
        self.backbone, self.width = backbone, backbone.width
        # On the host, where masks are drawn.
        self._is_ordinary = torch.ones(backbone.vocabulary, dtype=torch.bool)
        self._is_ordinary[list(backbone.special_ids)] = False

    def draw_mask(self, inputs: dict[str, Tensor], generator: torch.Generator) -> TokenMask:
        """Select ordinary tokens at random, independently, and mask them.

        Of the selected ones 80 % become the mask token, 10 % any id of the vocabulary, 10 % stay. Source: Devlin et al.
        2019; special and pad tokens are never selected.
        """
        # Three numbers are drawn for every token that is no padding, in the order of the examples, whatever becomes of
        # them: so a token's draws depend neither on padding, nor on micro-batches, nor on which others are selected.
        input_ids, mask_id = inputs["input_ids"], self.backbone.mask_id
        assert mask_id is not None  # the spec's own check
        present = inputs["attention_mask"].flatten().nonzero()[:, 0]  # example by example
        ids = input_ids.flatten()[present]
        selection, fate, choice = torch.rand(len(ids), 3, generator=generator, dtype=torch.float32).unbind(1)
        chosen = (self._is_ordinary[ids] & (selection < self.backbone.mask_ratio)).nonzero()[:, 0]
        selected, true_ids, fate = present[chosen], ids[chosen], fate[chosen]
        random_ids = (choice[chosen].double() * self.backbone.vocabulary).long()
        shown = torch.where(fate < 0.9, true_ids.masked_fill(fate < 0.8, mask_id), random_ids)
        masked = input_ids.flatten().index_copy(0, selected, shown).view_as(input_ids)
        return in_few_sizes(masked, selected, true_ids)

    def masked_loss(self, inputs: dict[str, Tensor], mask: TokenMask) -> Tensor:
        return masked_token_loss(self.masked_predictions(inputs, mask), mask.labels)


class TextModel(LanguageNetwork):
    """A BERT or RoBERTa encoder with a decoder, a classifier, or neither.

    The decoder is the masked-language-model head, whose output projection is tied to the word embeddings; the
    classifier reads the first token.

    `dropout` applies to hidden states, attention weights and the classifier (dropout, linear, tanh, dropout, linear).
    Inputs may hold "token_type_ids" (B, T) too, where the backbone knows segments; padding stands at the end.
    """

    POSITIONS = ("position_embeddings.weight",)
    TOKENS = ("token_type_embeddings.weight",)
    BLOCKS = "encoder.layer"
    ATTENTION = tuple((f"attention.self.{part}.weight", (part,)) for part in ("query", "key", "value"))
    COMPILED = (block_of_all, block_of_first, block_of_selected)

    encoder: BertModel | RobertaModel
    backbone: MaskedLanguageModel

    def __init__(
        self, backbone: MaskedLanguageModel, *, classes: int | None, decoder: bool, dropout: float | None
    ) -> None:
        super().__init__(backbone)
        rate = backbone.dropout if dropout is None else dropout
        # Built whole even where the decoder is dropped, so that the encoder's random weights are the same either way.
        encoder, masked_head = _network(backbone, rate)
        self.encoder = encoder
        self.head = None if classes is None else classifier(backbone.width, classes, rate)
        self.decoder = masked_head if decoder else None
        use_dropout(self)

    def features(self, inputs: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        layout = _Layout.of(inputs)
        words = self._words(inputs["input_ids"], layout) if embeddings is None else layout.taken(embeddings)
        return layout.of_sequences(self._run(block_of_first)(*self._until_last_block(inputs, words, layout)))

    def embed(self, inputs: dict[str, Tensor]) -> Tensor:
        words: Tensor = self.encoder.embeddings.word_embeddings(inputs["input_ids"])
        return words

    def masked_predictions(self, inputs: dict[str, Any], mask: TokenMask) -> Tensor:
        assert self.decoder is not None, "this model was built without a decoder"
        layout = _Layout.of(inputs)
        before_last = self._until_last_block(inputs, self._words(mask.input_ids, layout), layout)
        # The vocabulary projection is most of a small model's work: only where it is needed.
        selected = self._run(block_of_selected)(*before_last, layout.located(mask.positions))
        logits: Tensor = self.decoder(selected)
        return logits

    def _words(self, input_ids: Tensor, layout: _Layout) -> Tensor:
        words: Tensor = self.encoder.embeddings.word_embeddings(layout.taken(input_ids))
        return words

    def _until_last_block(
        self, inputs: dict[str, Any], words: Tensor, layout: _Layout
    ) -> tuple[TextBlock, Tensor, Masks]:
        """Run word embeddings (N, D) through all blocks but the last.

        Returns the last block and the arguments to call it with.
        """
        table, first = self.encoder.embeddings, self.backbone.first_position
        types = inputs.get("token_type_ids")
        segments = (
            table.token_type_embeddings.weight[0] if types is None else table.token_type_embeddings(layout.taken(types))
        )
        positions = table.position_embeddings.weight[first : first + layout.shape[1]].expand(*layout.shape, -1)
        hidden: Tensor = table.dropout(table.LayerNorm(words + segments + layout.taken(positions)))
        masks = layout.masks(inputs["attention_mask"])
        *blocks, last = cast("list[TextBlock]", self.encoder.encoder.layer)
        for block in blocks:
            hidden = self._run(block_of_all)(block, hidden, masks)
        return last, hidden, masks


class _Layout(NamedTuple):
    """The order in which the N tokens of a batch are computed.

    `shape` is (B, T); `parts` hold indices (b, t) into the B·T tokens and `order` (N,) all of them. Without parts the
    order is that of the batch.
    """

    shape: tuple[int, ...]
    parts: tuple[Tensor, ...]
    order: Tensor | None

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> _Layout:
        parts = inputs.get("parts", ())
        order = torch.cat([part.flatten() for part in parts]) if parts else None
        return cls(inputs["input_ids"].shape, parts, order)

    def taken(self, tokens: Tensor) -> Tensor:
        """Take the N computed tokens out of (B, T, …): (N, …)."""
        flat = tokens.flatten(0, 1)
        return flat if self.order is None else flat.index_select(0, self.order)

    def masks(self, attention_mask: Tensor) -> Masks:
        # Given a mask of two dimensions, transformers' encoders would ask the device whether there is any padding.
        present = attention_mask.bool()
        if not self.parts:
            return (present[:, None, None],)
        return tuple(present.flatten()[part][:, None, None] for part in self.parts)

    def located(self, positions: Tensor) -> Tensor:
        """Find the tokens at `positions` (n,) among the N. The positions are indices into the B·T tokens."""
        if self.order is None:
            return positions
        # The inverse of `order`: order [2 0 1] says that token 2 is computed first, so token 2 stands at 0.
        inverse = torch.zeros(self.shape[0] * self.shape[1], dtype=torch.long, device=positions.device)
        return inverse.index_copy(0, self.order, torch.arange(len(self.order), device=positions.device))[positions]

    def of_sequences(self, values: Tensor) -> Tensor:
        """Put rows of sequences into the order of the batch: (B, …).

        `values` has one row for each sequence, part by part.
        """
        if not self.parts:
            return values
        # A part's first column holds the indices of first tokens. Example: where T = 5, token 10 begins the sequence 2,
        # which is 10 // 5, so the row computed for it belongs there.
        rows = torch.cat([part[:, 0] for part in self.parts]) // self.shape[1]
        return torch.empty_like(values).index_copy(0, rows, values)


def _network(backbone: MaskedLanguageModel, dropout: float) -> tuple[BertModel | RobertaModel, nn.Module]:
    """Build the encoder and the masked-language-model head.

    The encoder has no pooler; the head is tied to its word embeddings.
    """
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


def classifier(width: int, classes: int, dropout: float) -> nn.Sequential:
    """Build the classifier of texts: dropout, linear, tanh, dropout, linear."""
    layers = nn.Linear(width, width), nn.Linear(width, classes)
    for layer in layers:
        nn.init.normal_(layer.weight, std=INIT_STD)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Dropout(dropout), layers[0], nn.Tanh(), nn.Dropout(dropout), layers[1])
