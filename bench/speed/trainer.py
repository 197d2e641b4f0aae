"""Fine-tuning with transformers' `Trainer` at its best settings: what a user would pick instead; needs `accelerate`."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import torch
import transformers
from torch import Tensor

from baselines import finetune
from bench import device as devices
from bench.specs.objectives import AdamW
from bench.speed import references, synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.work import Work


def run(work: Work, pace: Pace, compile: bool = False) -> None:
    """Train until `pace` says that it is enough, in bfloat16 where our loop does, with fused AdamW."""
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    schedule, adamw = finetune.SCHEDULES[work.modality], AdamW()
    with tempfile.TemporaryDirectory() as folder:
        settings = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,
            per_device_train_batch_size=work.batch_size,
            learning_rate=schedule.lr,
            weight_decay=adamw.weight_decay,
            max_grad_norm=schedule.clip_norm or 0.0,
            optim="adamw_torch_fused",
            bf16=work.precision == "bfloat16",
            tf32=True if work.precision == "tf32" else None,
            torch_compile=compile,
            train_sampling_strategy="group_by_length" if work.modality == "text" else "random",
            use_cpu=work.on_cpu,
            dataloader_pin_memory=not work.on_cpu,
            logging_strategy="no",
            logging_nan_inf_filter=False,  # it would wait for the loss of every step
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = transformers.Trainer(
            model=references.network(work, "sdpa"),
            args=settings,
            train_dataset=_rows(work),
            data_collator=lambda rows: _collated(rows, work),
            callbacks=[_Turns(pace)],
        )
        with contextlib.suppress(Enough):
            trainer.train()
        devices.synchronize(devices.resolve(work.device))


class _Turns(transformers.TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        self._pace.begin()

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        self._pace()


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self._rows[index]


def _rows(work: Work) -> _Rows:
    examples = synthetic.examples(work, labelled=True)
    assert examples.labels is not None
    name = "pixel_values" if work.modality == "image" else "input_ids"
    inputs = synthetic.images(examples) if work.modality == "image" else synthetic.texts(examples)
    return _Rows([{name: value, "labels": label} for value, label in zip(inputs, examples.labels, strict=True)])


def _collated(rows: list[dict[str, Tensor]], work: Work) -> dict[str, Tensor]:
    labels = torch.stack([row["labels"] for row in rows])
    if work.modality == "image":
        return {"pixel_values": torch.stack([row["pixel_values"] for row in rows]), "labels": labels}
    return {**references.padded([row["input_ids"] for row in rows], work.backbone), "labels": labels}
