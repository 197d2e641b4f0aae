"""Fine-tuning with transformers' `Trainer` at its best settings: what a user would pick instead; needs `accelerate`."""

from __future__ import annotations

import contextlib
import tempfile
from typing import Any

import transformers

from bench import device as devices
from bench.speed import references, synthetic
from bench.speed.pace import Enough, Pace
from bench.speed.work import TRAINER, TRAINER_COMPILED, Work


def run(work: Work, pace: Pace, who: str = TRAINER) -> None:
    """Train with fused AdamW until `pace` says that it is enough.

    The precision is that of our loop.
    """
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(Enough):
        settings = transformers.TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,
            per_device_train_batch_size=work.batch_size,
            learning_rate=work.schedule.lr,
            weight_decay=work.optimizer.weight_decay,
            max_grad_norm=work.schedule.clip_norm or 0.0,
            optim="adamw_torch_fused",
            bf16=work.precision == "bfloat16",
            tf32=True if work.precision == "tf32" else None,
            torch_compile=who == TRAINER_COMPILED,
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
            train_dataset=synthetic.rows(work),
            data_collator=lambda rows: synthetic.collated(rows, work),
            callbacks=[_Turns(pace)],
        )
        trainer.train()
    devices.synchronize(devices.resolve(work.device))


class _Turns(transformers.TrainerCallback):
    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    def on_train_begin(self, *arguments: Any, **others: Any) -> None:
        self._pace.begin()

    def on_step_end(self, *arguments: Any, **others: Any) -> None:
        self._pace()
