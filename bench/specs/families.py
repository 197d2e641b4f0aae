"""Text encoders that transformers itself computes: of each family, what is called what there and what it reads.

BERT and RoBERTa are not among them: `bench.models.text` computes those faster. A row is data alone, so that a plan can
read it without torch or transformers; `bench.models.transformers_text` builds the network that it describes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SIZES_OF_BERT = {
    "vocabulary": "vocab_size",
    "width": "hidden_size",
    "depth": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "positions": "max_position_embeddings",
    "segments": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
}
"""The fields of a backbone that a configuration of transformers holds, and their names in most of them."""


def _separate(query: str, key: str, value: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = {"query": query, "key": key, "value": value}
    return tuple((f"{name}.weight", (part,)) for part, name in names.items())


FUSED = (("attn.Wqkv.weight", ("query", "key", "value")), ("attn.c_attn.weight", ("query", "key", "value")))
"""One matrix for all three, as ModernBERT and GPT-2 call it."""
DROPOUTS_OF_BERT = ("hidden_dropout_prob", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Family:
    """A kind of text encoder in transformers.

    `language_model` is the class of the encoder with its decoder. `fields` gives the configuration's name of each
    field that a backbone has of its own, `settings` of what else decides what the network computes. `dropouts` are its
    names of dropout rates: a checkpoint's rate is read from the first, and a backbone's one rate is written to all. A
    configuration that sets one of `required` to another value is refused.

    `causal`: each token sees only those before it and predicts the next one. Features are then read from the last
    token that is no padding, and the second text of a pair follows behind the end-of-text token; otherwise the first
    token is read, and separators are the tokenizer's.

    `decoder` names the modules of the language-model network that, one after the other, turn hidden states into scores;
    `projection` is the last one's weight, `projection_bias` another name of its bias. `words` to `depths` are names
    within the encoder: the word embeddings, blocks, what comes after them, position embeddings, token types, and
    parameters outside the blocks that are as deep as one. `projections` are `Model.ATTENTION`. `special` are the
    special tokens of a tokenizer whose configuration names none; without a token for padding, the end-of-text token is
    it.
    """

    language_model: str
    fields: Mapping[str, str]
    dropouts: tuple[str, ...]
    settings: tuple[str, ...]
    decoder: tuple[str, ...]
    projection: str
    words: str
    blocks: str
    projection_bias: str | None = None
    final: tuple[str, ...] = ()
    positions: tuple[str, ...] = ("position_embeddings.weight",)
    tokens: tuple[str, ...] = ("token_type_embeddings.weight",)
    depths: Mapping[str, int] = field(default_factory=dict)
    required: Mapping[str, object] = field(default_factory=dict)
    projections: tuple[tuple[str, tuple[str, ...]], ...] = FUSED
    attention: str = "sdpa"
    causal: bool = False
    special: Mapping[str, str] = field(default_factory=lambda: {"pad_token": "[PAD]", "mask_token": "[MASK]"})


FAMILIES: dict[str, Family] = {
    "distilbert": Family(
        language_model="DistilBertForMaskedLM",
        # Its norms have an epsilon of 1e-12 that no configuration sets, and it knows no segments.
        fields={
            "vocabulary": "vocab_size",
            "width": "dim",
            "depth": "n_layers",
            "heads": "n_heads",
            "mlp_width": "hidden_dim",
            "positions": "max_position_embeddings",
        },
        dropouts=("dropout", "attention_dropout"),
        settings=("activation", "sinusoidal_pos_embds"),
        decoder=("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        projection="vocab_projector",
        words="embeddings.word_embeddings",
        blocks="transformer.layer",
        projections=_separate("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    ),
    "electra": Family(
        language_model="ElectraForMaskedLM",
        fields=SIZES_OF_BERT,
        dropouts=DROPOUTS_OF_BERT,
        settings=("hidden_act", "embedding_size"),
        decoder=("generator_predictions", "generator_lm_head"),
        projection="generator_lm_head",
        words="embeddings.word_embeddings",
        blocks="encoder.layer",
        projections=_separate("attention.self.query", "attention.self.key", "attention.self.value"),
        required={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    ),
    "deberta-v2": Family(
        language_model="DebertaV2ForMaskedLM",
        # It may know no segments at all, so their number is a setting.
        fields={name: theirs for name, theirs in SIZES_OF_BERT.items() if name != "segments"},
        dropouts=DROPOUTS_OF_BERT,
        settings=(
            *("hidden_act", "embedding_size", "attention_head_size", "position_biased_input", "relative_attention"),
            *("max_relative_positions", "position_buckets", "pos_att_type", "share_att_key", "norm_rel_ebd"),
            *("conv_kernel_size", "conv_act", "conv_groups", "type_vocab_size"),
        ),
        decoder=("cls",),
        projection="cls.predictions.decoder",
        projection_bias="cls.predictions.bias",
        words="embeddings.word_embeddings",
        blocks="encoder.layer",
        projections=_separate("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
        positions=("position_embeddings.weight", "rel_embeddings.weight"),
        # The convolution of the larger ones stands beside the first block.
        depths={"encoder.conv.": 1},
        required={"legacy": True},
        attention="eager",
    ),
    "modernbert": Family(
        language_model="ModernBertForMaskedLM",
        fields={
            **{name: theirs for name, theirs in SIZES_OF_BERT.items() if name != "segments"},
            "norm_eps": "norm_eps",
        },
        dropouts=("embedding_dropout", "attention_dropout", "mlp_dropout"),
        settings=(
            *("hidden_activation", "classifier_activation", "norm_bias", "attention_bias", "mlp_bias"),
            *("decoder_bias", "classifier_bias", "layer_types", "local_attention", "rope_parameters"),
        ),
        decoder=("head", "decoder"),
        projection="decoder",
        words="embeddings.tok_embeddings",
        blocks="layers",
        final=("final_norm.",),
    ),
    "gpt2": Family(
        language_model="GPT2LMHeadModel",
        # Without n_inner its MLP is four times as wide as the network.
        fields={
            "vocabulary": "vocab_size",
            "width": "n_embd",
            "depth": "n_layer",
            "heads": "n_head",
            "mlp_width": "n_inner",
            "positions": "n_positions",
            "norm_eps": "layer_norm_epsilon",
        },
        dropouts=("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        settings=("activation_function", "scale_attn_weights", "scale_attn_by_inverse_layer_idx"),
        decoder=("lm_head",),
        projection="lm_head",
        words="wte",
        blocks="h",
        final=("ln_f.",),
        positions=("wpe.weight",),
        required={"reorder_and_upcast_attn": False, "add_cross_attention": False},
        causal=True,
        special={"eos_token": "<|endoftext|>"},
    ),
}
"""The families by the `model_type` of config.json."""
