"""Plain training loops on transformers' networks, step by step in the order of the released code.

A step of fine-tuning is a forward pass, a backward pass, clipping and an update. One of self-distillation is a masked
forward pass, its backward pass, a forward pass of the teacher, a second one of the student on the whole input, its
backward pass and an update. The optimiser is torch's AdamW as it is by default, and each loss is read as soon as it is
there. Inputs are ready in memory: less than the released code does.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn

from bench import device as devices
from bench.models.image import sincos_positions
from bench.specs import Execution
from bench.specs.architectures import SIZES, MaskedLanguageModel
from bench.specs.families import SIZES_OF_BERT
from bench.speed import synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.synthetic import Tensors
from bench.speed.work import BARE, CLASSES, RELEASED, SAME, Work

Attention = Literal["eager", "sdpa"]

NETWORKS: dict[tuple[str, bool], Any] = {
    ("vit", True): transformers.ViTForImageClassification,
    ("vit", False): transformers.ViTMAEForPreTraining,
    ("bert", True): transformers.BertForSequenceClassification,
    ("bert", False): transformers.BertForMaskedLM,
    ("roberta", True): transformers.RobertaForSequenceClassification,
    ("roberta", False): transformers.RobertaForMaskedLM,
}
"""The classes of transformers, by encoder and whether they learn from labels."""


def network(work: Work, attention: Attention) -> Any:
    """Build transformers' network for a kind of stage, with random weights."""
    backbone, dropout = work.backbone, work.schedule.dropout
    fields = {ours: theirs for ours, theirs in SIZES_OF_BERT.items() if hasattr(backbone, ours)}
    settings: dict[str, Any] = {theirs: getattr(backbone, ours) for ours, theirs in fields.items()}
    settings |= {"attn_implementation": attention, "num_labels": CLASSES}
    if isinstance(backbone, MaskedLanguageModel):
        rate = backbone.dropout if dropout is None else dropout
        settings |= {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
        settings |= {"max_position_embeddings": backbone.positions or backbone.max_length}
        return _built(backbone.network, work.labelled, settings | {"pad_token_id": backbone.pad_id})
    settings |= {"hidden_dropout_prob": dropout or 0.0, "attention_probs_dropout_prob": 0.0}
    settings |= {"image_size": backbone.image_size, "patch_size": backbone.patch_size}
    if work.labelled:
        return _built("vit", True, settings)
    settings |= {f"decoder_{SIZES_OF_BERT[size]}": getattr(backbone, f"decoder_{size}") for size in SIZES}
    settings |= {"mask_ratio": backbone.mask_ratio, "norm_pix_loss": backbone.norm_pix_loss}
    model = _built("vit", False, settings)
    with torch.no_grad():  # built from a configuration, positions are zeros
        for positions in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            grid = backbone.image_size // backbone.patch_size
            positions.copy_(sincos_positions(positions.shape[-1], grid, cls=True))
    return model


def _built(encoder: str, labelled: bool, settings: dict[str, Any]) -> Any:
    network = NETWORKS[encoder, labelled]
    return network(network.config_class(**settings))


def batches(work: Work) -> Iterator[Tensors]:
    """Yield a plain loop's batches for ever, shuffled in every epoch."""
    rows, device = synthetic.rows(work), devices.resolve(work.device)
    while True:
        for index in torch.randperm(work.examples).split(work.batch_size):  # type: ignore[no-untyped-call]
            batch = synthetic.collated([rows[i] for i in index.tolist()], work)
            yield {name: values.to(device) for name, values in batch.items()}


class Reference:
    """A network of transformers, its teacher and its optimiser, in one precision."""

    def __init__(self, work: Work, attention: Attention, bfloat16: bool) -> None:
        self.work, self._device, self._bfloat16 = work, devices.resolve(work.device), bfloat16
        self.model: nn.Module = network(work, attention).to(self._device).train()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval() if work.kind == "self_distill" else None
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        lr, betas, decay = work.schedule.lr, work.optimizer.betas, work.optimizer.weight_decay
        self._optimizer = torch.optim.AdamW(self.trained, lr=lr, betas=betas, weight_decay=decay)

    def autocast(self) -> torch.autocast:
        """Compute in bfloat16 meanwhile, where that is asked for."""
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16)

    def losses(self, batch: Tensors, noise: Tensor | None = None) -> Iterator[Tensor]:
        """Yield one loss after another, each with its own graph.

        `noise` (B, K) orders the patches of images.
        """
        inputs: dict[str, Any] = {**batch}
        if not self.work.labelled:
            inputs |= {"noise": noise} if self.work.modality == "image" else masked_tokens(batch, self.work)
        with self.autocast():
            loss = self.model(**inputs).loss
        yield loss
        if self.teacher is not None:
            with self.autocast():
                with torch.no_grad():
                    target = self.features(self.teacher, batch)
                loss = (self.features(self.model, batch) - target).square().sum(-1).mean()
            yield loss

    def features(self, model: Any, batch: Tensors) -> Tensor:
        """Return the first token (B, D) behind the last norm, nothing masked."""
        if self.work.modality == "text":
            hidden: Tensor = model.base_model(**batch).last_hidden_state
            return hidden[:, 0]
        config = model.config
        config.mask_ratio, ratio = 0.0, config.mask_ratio
        hidden = model.vit(**batch).last_hidden_state
        config.mask_ratio = ratio
        return hidden[:, 0]

    def step(self, batch: Tensors, bare: bool = False) -> None:
        """Take one step in the released order.

        A bare one neither reads losses nor clips.
        """
        self._optimizer.zero_grad()
        for loss in self.losses(batch):
            loss.backward()  # type: ignore[no-untyped-call]
            if not bare:
                loss.item()  # waits for the device
        if self.work.schedule.clip_norm is not None and not bare:
            nn.utils.clip_grad_norm_(self.trained, self.work.schedule.clip_norm)
        self._optimizer.step()


def masked_tokens(batch: Tensors, work: Work) -> Tensors:
    """Select tokens for the masked language model, as BERT's collators do.

    Of the selected ones, 80 % are masked, 10 % replaced and 10 % kept.
    """
    backbone = work.backbone
    assert isinstance(backbone, MaskedLanguageModel) and backbone.mask_id is not None
    tokens = batch["input_ids"]
    special = torch.isin(tokens, torch.tensor(backbone.special_ids, device=tokens.device))
    selected = torch.rand(tokens.shape, device=tokens.device).lt(backbone.mask_ratio) & ~special
    # One random number per token decides: below 0.8 it is masked, from 0.9 it is replaced, between them it is kept.
    fate = torch.rand(tokens.shape, device=tokens.device)
    masked = tokens.masked_fill(selected & (fate < 0.8), backbone.mask_id)
    masked = torch.where(selected & (fate >= 0.9), torch.randint_like(tokens, backbone.vocabulary), masked)
    return {**batch, "input_ids": masked, "labels": tokens.masked_fill(~selected, -100)}


def run(work: Work, pace: Pace, who: str) -> None:
    """Run one of the reference loops until `pace` ends it.

    - `RELEASED`: in full float32 with eager attention, as it was released
    - `SAME`: in the precision that ours has, with fused attention
    - `BARE`: the same, but forward, backward and update alone, on batches that lie ready
    """
    attention: dict[str, Attention] = {RELEASED: "eager", SAME: "sdpa", BARE: "sdpa"}
    bfloat16 = who != RELEASED and work.precision == "bfloat16"
    with contextlib.ExitStack() as stack:
        if who != RELEASED:
            stack.enter_context(devices.numerics(Execution(precision=work.precision), devices.resolve(work.device)))
        stack.enter_context(contextlib.suppress(Enough))
        reference, source = Reference(work, attention[who], bfloat16), batches(work)
        if who == BARE:
            source = itertools.cycle(list(itertools.islice(source, work.epoch)))
        pace.begin()
        for batch in source:
            reference.step(batch, bare=who == BARE)
            pace()
