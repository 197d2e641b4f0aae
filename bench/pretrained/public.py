"""The public checkpoints of the papers, pinned."""

from __future__ import annotations

from dataclasses import dataclass

from bench.errors import InputError, SpecError
from bench.pretrained import origin
from bench.pretrained.checkpoints import Prepared
from bench.specs import Spec


@dataclass(frozen=True)
class Checkpoint(Spec):
    """Weights made elsewhere: `folder:PATH`, or `OWNER/NAME@REVISION` on the Hugging Face hub.

    `weights_checksum` is the sha256 of the weight file, which a pickled one (`.bin`) needs and any may have.
    """

    weights: str
    weights_checksum: str | None = None

    def check(self) -> None:
        try:
            origin.parse(self.weights)
        except InputError as error:
            raise SpecError("weights", str(error)) from error

    def differs(self, prepared: Prepared) -> str | None:
        """How what is prepared is not what is declared, or no longer what its files are; None where it is."""
        if prepared.source != self.weights:
            return f"was prepared from {prepared.source}, not from {self.weights}"
        if origin.fingerprint(self.weights) not in (None, prepared.fingerprint):
            return f"has changed in {self.weights} since it was prepared"
        return None

    @property
    def local(self) -> bool:
        """Whether it lies on this computer, so that a grid may prepare it unasked."""
        return self.weights.startswith("folder:")


PUBLIC: dict[str, Checkpoint] = {
    # A revision is a commit, so that the same name always means the same weights; one that is not pinned here is
    # looked up when the weights are prepared.
    "vit_mae_base": Checkpoint(
        "facebook/vit-mae-base@25b184bea5538bf5c4c852c79d221195fdd2778d",
        weights_checksum="479dcef4bd5df06259399027b789f21e9d9a1b79f37155a64176d55bc26fdae8",
    ),
    "vit_mae_large": Checkpoint("facebook/vit-mae-large"),
    "roberta_base": Checkpoint(
        "FacebookAI/roberta-base@e2da8e2f811d1448a5b465c236feacd80ffbac7b",
        weights_checksum="5bde1d28afb363d0103324efeb5afc8b2b397fe5e04beabb9b1ef355255ade81",
    ),
    "roberta_large": Checkpoint("FacebookAI/roberta-large@722cf37b1afa9454edce342e7895e588b6ff1d59"),
}
