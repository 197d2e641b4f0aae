"""Networks behind one face for both modalities; timm and transformers are imported only when one is built."""

from __future__ import annotations

from bench.interfaces.model import Model
from bench.specs import Backbone
from bench.specs.architectures import MaskedAutoEncoder, MaskedLanguageModel, TransformersEncoder


def build(
    backbone: Backbone,
    *,
    classes: int | None = None,
    decoder: bool = False,
    dropout: float | None = None,
    labelled: bool | None = None,
) -> Model:
    """Build a randomly initialised model in training mode.

    Every draw is from torch's default generator, which callers seed.

    `classes` adds a classifier head, `decoder` the decoder; the encoder's weights do not depend on either. `dropout`
    None keeps the backbone's own rate (images: 0). Positions of images are trained where a stage is `labelled`; None
    says that it is if there are classes.
    """
    labelled = classes is not None if labelled is None else labelled
    own: Model | None = backbone.build_model(classes=classes, decoder=decoder, dropout=dropout, labelled=labelled)
    if own is not None:
        return own
    if isinstance(backbone, MaskedAutoEncoder):
        from bench.models.image import ImageModel

        return ImageModel(backbone, classes=classes, decoder=decoder, dropout=dropout, labelled=labelled)
    if isinstance(backbone, MaskedLanguageModel):
        from bench.models.text import TextModel

        return TextModel(backbone, classes=classes, decoder=decoder, dropout=dropout)
    if isinstance(backbone, TransformersEncoder):
        from bench.models.transformers_text import TransformersText

        return TransformersText(backbone, classes=classes, decoder=decoder, dropout=dropout)
    raise TypeError(f"no network for the backbone type {type(backbone).__name__}")
