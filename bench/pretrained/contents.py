"""The contents of a checkpoint's own files, whatever library wrote them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from bench.errors import InputError
from bench.interfaces.model import Inputs, Resampling
from bench.specs.families import FAMILIES

NETWORKS = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
"""`model_type` of a text checkpoint -> the network that it is here."""


class ImageFamily(NamedTuple):
    """A kind of image encoder of transformers.

    `network` is its class there; `fields` are those of `MaskedAutoEncoder` that every network of it has; `resampling`
    is what the library does with positions for images of another size. Its feature is CLS after the final norm.
    """

    network: str
    fields: dict[str, Any]
    resampling: Resampling


IMAGE_FAMILIES = {
    "vit": ImageFamily("ViTModel", {}, "bicubic"),
    "deit": ImageFamily("DeiTModel", {"registers": 1}, "bicubic"),  # the distillation token
    "dinov2": ImageFamily("Dinov2Model", {}, "bicubic"),
    "dinov2_with_registers": ImageFamily("Dinov2WithRegistersModel", {"positioned": "cls_and_patches"}, "antialiased"),
}
"""Image encoders by the `model_type` of config.json; `vit_mae`, with its decoder, stands by itself."""


_OF_TRANSFORMERS = ", ".join(["vit_mae", *IMAGE_FAMILIES, *NETWORKS, *FAMILIES])
LEGAL = f"{_OF_TRANSFORMERS} of transformers; vit_*, deit* of timm"


class CheckpointContents(NamedTuple):
    """The contents of a checkpoint's folder, by this suite's names.

    `fresh` names this suite's parameters that the file lacks, `ignored` the file's tensors that no parameter here
    takes. `features` are computed as the library itself does it. `resampling` says how the library fits positions to
    another image size, None where this suite does not.
    """

    modality: Literal["image", "text"]
    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    fresh: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tokenizer: str | None = None
    features: Callable[[Inputs], Tensor] | None = None
    resampling: Resampling | None = None


def require_settings(folder: Path, config: Mapping[str, Any], legal: Mapping[str, Any]) -> None:
    """Refuse a configuration that sets one of these to another value.

    A setting that is absent is legal.
    """
    for name, legal_value in legal.items():
        if (value := config.get(name, legal_value)) != legal_value:
            raise InputError(f"{folder / 'config.json'}: {name} is {value!r}; here it must be {legal_value!r}.")


def parse_configuration(folder: Path, kind: Any, raw: dict[str, Any]) -> Any:
    """Parse config.json as transformers does.

    Refuses values of which it can make no configuration.
    """
    from huggingface_hub.errors import StrictDataclassError

    try:
        with quiet_transformers():
            return kind.from_dict(raw)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise InputError(f"{folder / 'config.json'} is no configuration of a {raw['model_type']}: {error}") from error


def load_network(
    network_class: Any, config: Any, state: dict[str, Tensor], **options: Any
) -> tuple[Any, Mapping[str, Any]]:
    """Build transformers' network with these tensors, in float32 and eval mode.

    Returns what the library says of the loading, too.
    """
    with quiet_transformers():
        network, loading = network_class.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=torch.float32, **options
        )
    return network.eval(), loading


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the library's reports; what matters of them is returned or refused."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
