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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from baselines import finetune, tapt
from bench import device as devices
from bench.models.image import sincos_positions
from bench.specs import Execution
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel
from bench.specs.objectives import AdamW
from bench.speed import synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.work import BARE, CLASSES, RELEASED, SAME, Work

Attention = Literal["eager", "sdpa"]
Tensors = dict[str, Tensor]


def network(work: Work, attention: Attention) -> Any:
    """Build transformers' network for a kind of stage from a configuration, with random weights."""
    backbone = work.backbone
    labelled = work.kind == "finetune"
    dropout = (finetune.SCHEDULES if labelled else tapt.SCHEDULES)[work.modality].dropout
    settings: dict[str, Any] = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "intermediate_size": backbone.mlp_width,
        "layer_norm_eps": backbone.norm_eps,
        "attn_implementation": attention,
    }
    if labelled:
        settings["num_labels"] = CLASSES
    if isinstance(backbone, MaskedAutoEncoder):
        return _image_network(backbone, settings | {"hidden_dropout_prob": dropout or 0.0}, labelled)
    rate = backbone.dropout if dropout is None else dropout
    settings |= {"hidden_dropout_prob": rate, "attention_probs_dropout_prob": rate}
    return _text_network(backbone, settings, labelled)


def _image_network(backbone: MaskedAutoEncoder, settings: dict[str, Any], labelled: bool) -> Any:
    settings |= {
        "image_size": backbone.image_size,
        "patch_size": backbone.patch_size,
        "attention_probs_dropout_prob": 0.0,
    }
    if labelled:
        return transformers.ViTForImageClassification(transformers.ViTConfig(**settings))
    made = transformers.ViTMAEForPreTraining(
        transformers.ViTMAEConfig(
            **settings,
            decoder_hidden_size=backbone.decoder_width,
            decoder_num_hidden_layers=backbone.decoder_depth,
            decoder_num_attention_heads=backbone.decoder_heads,
            decoder_intermediate_size=backbone.decoder_mlp_width,
            mask_ratio=backbone.mask_ratio,
            norm_pix_loss=backbone.norm_pix_loss,
        )
    )
    grid = backbone.image_size // backbone.patch_size
    with torch.no_grad():  # built from a configuration, positions are zeros
        for positions in (made.vit.embeddings.position_embeddings, made.decoder.decoder_pos_embed):
            positions.copy_(sincos_positions(positions.shape[-1], grid, cls=True))
    return made


def _text_network(backbone: MaskedLanguageModel, settings: dict[str, Any], labelled: bool) -> Any:
    settings |= {
        "vocab_size": backbone.vocabulary,
        "max_position_embeddings": backbone.positions or backbone.max_length,
        "type_vocab_size": backbone.segments,
        "pad_token_id": backbone.pad_id,
    }
    if backbone.network == "roberta":
        roberta = transformers.RobertaConfig(**settings)
        if labelled:
            return transformers.RobertaForSequenceClassification(roberta)
        return transformers.RobertaForMaskedLM(roberta)
    bert = transformers.BertConfig(**settings)
    return transformers.BertForSequenceClassification(bert) if labelled else transformers.BertForMaskedLM(bert)


class Data:
    """The batches of a plain loop: examples shuffled in every epoch, texts padded to the longest of their batch."""

    def __init__(self, work: Work) -> None:
        self._work, self._device = work, devices.resolve(work.device)
        made = synthetic.examples(work, work.kind == "finetune")
        self._labels = made.labels
        self._images = synthetic.images(made) if work.modality == "image" else None
        self._texts = synthetic.texts(made) if work.modality == "text" else []

    def __iter__(self) -> Iterator[Tensors]:
        while True:
            for index in torch.randperm(self._work.examples).split(self._work.batch_size):  # type: ignore[no-untyped-call]
                yield {name: values.to(self._device) for name, values in self._batch(index).items()}

    def _batch(self, index: Tensor) -> Tensors:
        labels = {} if self._labels is None else {"labels": self._labels[index]}
        if self._images is not None:
            return {"pixel_values": self._images[index], **labels}
        return {**padded([self._texts[i] for i in index.tolist()], self._work.backbone), **labels}


def padded(texts: list[Tensor], backbone: MaskedAutoEncoder | MaskedLanguageModel) -> Tensors:
    """Pad texts to the longest one, as `input_ids` and `attention_mask` (B, T)."""
    assert isinstance(backbone, MaskedLanguageModel)
    ones = [torch.ones_like(text) for text in texts]
    return {
        "input_ids": pad_sequence(texts, batch_first=True, padding_value=backbone.pad_id),
        "attention_mask": pad_sequence(ones, batch_first=True),
    }


class Reference:
    """A network of transformers, its teacher and its optimiser, in one precision."""

    def __init__(self, work: Work, attention: Attention, bfloat16: bool) -> None:
        labelled = work.kind == "finetune"
        schedule = (finetune.SCHEDULES if labelled else tapt.SCHEDULES)[work.modality]
        adamw = AdamW() if labelled else tapt.OPTIMIZERS[work.modality]
        self.work, self._device, self._bfloat16 = work, devices.resolve(work.device), bfloat16
        self.model: nn.Module = network(work, attention).to(self._device).train()
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval() if work.kind == "self_distill" else None
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._clip_norm = schedule.clip_norm
        self._optimizer = torch.optim.AdamW(
            self.trained, lr=schedule.lr, betas=adamw.betas, weight_decay=adamw.weight_decay
        )

    def autocast(self) -> AbstractContextManager[Any]:
        """Compute in bfloat16 meanwhile, where that is asked for."""
        if self._bfloat16:
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def losses(self, batch: Tensors, noise: Tensor | None = None) -> Iterator[Tensor]:
        """Give one loss after another, each with its own graph; `noise` (B, K) orders the patches of images."""
        if self.work.kind == "finetune":
            with self.autocast():
                loss = self.model(**batch).loss
            yield loss
            return
        with self.autocast():
            loss = self._masked(batch, noise)
        yield loss
        if self.teacher is not None:
            with self.autocast():
                with torch.no_grad():
                    wanted = self.features(self.teacher, batch)
                loss = (self.features(self.model, batch) - wanted).square().sum(-1).mean()
            yield loss

    def _masked(self, batch: Tensors, noise: Tensor | None) -> Tensor:
        if self.work.modality == "image":
            masked: Tensor = self.model(**batch, noise=noise).loss
        else:
            masked = self.model(**masked_tokens(batch, self.work)).loss
        return masked

    def features(self, model: Any, batch: Tensors) -> Tensor:
        """Give the first token of the whole input, after the last norm (B, D)."""
        if self.work.modality == "text":
            encoder = model.bert if hasattr(model, "bert") else model.roberta
            hidden: Tensor = encoder(**batch).last_hidden_state
            return hidden[:, 0]
        config = model.config
        config.mask_ratio, ratio = 0.0, config.mask_ratio
        hidden = model.vit(**batch).last_hidden_state
        config.mask_ratio = ratio
        return hidden[:, 0]

    def step(self, batch: Tensors) -> float:
        """Take one step in the released order; returns the sum of the losses."""
        self._optimizer.zero_grad()
        total = 0.0
        for loss in self.losses(batch):
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self.trained, self._clip_norm)
        self._optimizer.step()
        return total

    def bare_step(self, batch: Tensors) -> None:
        """Forward, backward, update: nothing else, and no loss is read."""
        self._optimizer.zero_grad()
        for loss in self.losses(batch):
            loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()


def masked_tokens(batch: Tensors, work: Work) -> Tensors:
    """Select tokens for the masked language model: 80 % masked, 10 % replaced, 10 % kept, as BERT's collators do."""
    backbone = work.backbone
    assert isinstance(backbone, MaskedLanguageModel)
    tokens = batch["input_ids"]
    special = torch.isin(tokens, torch.tensor(backbone.special_ids, device=tokens.device))
    selected = torch.rand(tokens.shape, device=tokens.device).lt(backbone.mask_ratio) & ~special
    fate = torch.rand(tokens.shape, device=tokens.device)
    masked = tokens.masked_fill(selected & (fate < 0.8), backbone.mask_id)
    masked = torch.where(selected & (fate >= 0.9), torch.randint_like(tokens, backbone.vocabulary), masked)
    return {**batch, "input_ids": masked, "labels": tokens.masked_fill(~selected, -100)}


def released(work: Work, pace: Pace) -> None:
    """Run the reference in full float32 with eager attention, as it was released."""
    reference = Reference(work, "eager", bfloat16=False)
    _loop(reference.step, iter(Data(work)), pace)


def same(work: Work, pace: Pace) -> None:
    """Run the reference in the precision that ours has, with fused attention."""
    with devices.numerics(Execution(precision=work.precision), devices.resolve(work.device)):
        reference = Reference(work, "sdpa", bfloat16=work.precision == "bfloat16")
        _loop(reference.step, iter(Data(work)), pace)


def bare(work: Work, pace: Pace) -> None:
    """Run forward, backward and update of the reference network alone, on batches that lie ready."""
    with devices.numerics(Execution(precision=work.precision), devices.resolve(work.device)):
        reference = Reference(work, "sdpa", bfloat16=work.precision == "bfloat16")
        ready = list(itertools.islice(Data(work), work.epoch))
        _loop(reference.bare_step, itertools.cycle(ready), pace)


LOOPS: dict[str, Callable[[Work, Pace], None]] = {RELEASED: released, SAME: same, BARE: bare}


def _loop(step: Any, batches: Iterator[Tensors], pace: Pace) -> None:
    with contextlib.suppress(Enough):
        pace.begin()
        for batch in batches:
            step(batch)
            pace()
