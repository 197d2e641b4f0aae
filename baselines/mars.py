"""MARS projection: fine-tuning in which no output unit may move far from its start (Gouk et al. 2021).

| paper                                           | here                                                       |
|-------------------------------------------------|------------------------------------------------------------|
| W, one layer's weight; U, its value at the start | `weight`, `centre` (None for the origin)                   |
| ‖W − U‖_∞ = max_j ‖W_j − U_j‖₁, "MARS"          | `mars_distance`; j is an output unit: dimension 0 in torch  |
| π(W, U, d), the projection                      | `mars_projection`, after every optimiser step              |
| the Frobenius variant                           | `frobenius_projection`, `MarsProjection.norm`              |
| γ of a batch norm as diag(γ / σ)                | `gain_projection`, `MarsProjection.norm_gains`             |
| d of the feature extractor, d of the classifier | `MarsProjection.radius`, `MarsProjection.head_radius`      |

Row j becomes U_j + (W_j − U_j) / max(1, n_j / d) with n_j = Σ_i |W_ji − U_ji|: each row by itself, radially, and rows
inside the ball not at all. The Frobenius variant scales the whole tensor. The classifier's ball is around the origin,
not around its random start. Biases are free.

The paper searched d log-uniformly in [e^0.5, e^3.5] = [1.65, 33.1] on validation accuracy; its optima were 3.5 to 18.1
for the extractor and 7.6 to 31.0 for the classifier. It trained with Adam (amsgrad); here the stage is fine-tuning's
own. Lee et al. (2023) give no radius and nobody defines MARS for transformers. Chosen here: radius 7 and a free head;
matrices and the patch convolution are constrained, layer norms and all embeddings are free. With `embeddings` a row is
the vector of one token or position. With `norm_gains` a layer norm's gain is a diagonal matrix: it has no running
variance to divide by, so |γ − γ_start| ≤ d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from baselines.finetune import finetune
from bench.methods import Activity, Cell, Constraint, Context, Stage, State, recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from bench.interfaces.model import Model


KINDS = {"matrix": "kernel", "norm": "gain", **dict.fromkeys(("embedding", "token", "position"), "embedding")}
"""What a role is to MARS; biases are left free."""


def _row_distances(moved: Tensor) -> Tensor:
    """Return Σ_i |W_ji − U_ji| for every output unit j.

    `moved` is W − U. A vector is a diagonal matrix, one value per row.
    """
    return moved.abs().reshape(len(moved), -1).sum(dim=1)


def mars_distance(weight: Tensor, centre: Tensor | None) -> Tensor:
    """Return max_j Σ_i |W_ji − U_ji|, a scalar with a graph.

    It is the induced ∞-norm of `weight` minus `centre` (None: the origin).
    """
    return _row_distances(weight if centre is None else weight - centre).max()


def mars_projection(weight: Tensor, centre: Tensor | None, radius: float) -> Tensor:
    """Return `weight` with every row inside its ball.

    A row outside the ball of `radius` around `centre`'s row is pulled back onto it. A row is what feeds one output
    unit: `weight[j]`, of a matrix (out, in) or a convolution (out, in, height, width). Without a centre the ball is
    around the origin.
    """
    return _projected([weight], [centre], radius, "mars")[0][0]


def frobenius_projection(weight: Tensor, centre: Tensor | None, radius: float) -> Tensor:
    """Return `weight`, as a whole inside the ball around `centre`.

    It is pulled back where its Euclidean distance from `centre` is more than `radius`.
    """
    return _projected([weight], [centre], radius, "frobenius")[0][0]


def _projected(
    weights: list[Tensor], centres: list[Tensor | None], radius: float, norm: Literal["mars", "frobenius"]
) -> tuple[list[Tensor], Tensor]:
    """Project all these weights at once, and count the rows that moved.

    Each foreach operation is applied to the whole list. A tensor bounded as a whole counts as one row.
    """
    import torch

    # For a matrix with W − U = [[3, −1], [0.5, 0.5]] and the radius 2, the rows are 4 and 1 from their centres. Only
    # the first is divided, by 4 / 2, so W becomes U + [[1.5, −0.5], [0.5, 0.5]]. The Frobenius distance is 3.24, so
    # there all of W − U is divided by 1.62.
    origins = [
        torch.zeros_like(weight) if centre is None else centre for weight, centre in zip(weights, centres, strict=True)
    ]
    moved = torch._foreach_sub(weights, origins)
    if norm == "frobenius":
        distances = list(torch._foreach_norm(moved))
    else:
        # (out,) -> (out, 1, ..., 1), to scale rows.
        distances = [_row_distances(way).reshape(-1, *[1] * (way.ndim - 1)) for way in moved]
    shrink = torch._foreach_div(distances, radius)
    torch._foreach_clamp_min_(shrink, 1)
    pulled = torch._foreach_add(origins, torch._foreach_div(moved, shrink))
    # U + (W − U) is not W: what is inside keeps its bits.
    outside = [distance > radius for distance in distances]
    projected = [torch.where(far, new, old) for far, new, old in zip(outside, pulled, weights, strict=True)]
    return projected, torch.stack([far.sum() for far in outside]).sum()


def gain_projection(
    gain: Tensor,
    centre: Tensor,
    radius: float,
    variance: Tensor | None = None,
    centre_variance: Tensor | None = None,
    eps: float = 1e-6,
) -> Tensor:
    """Return a norm layer's `gain`, pulled back where it is too far.

    That is where |γ/σ − γ_start/σ_start| > `radius`. σ² + eps is a batch norm's running variance, now and at the start;
    without one (layer norm) σ is 1.
    """
    import torch

    deviation = torch.ones_like(gain) if variance is None else (variance + eps).sqrt()
    centre_deviation = torch.ones_like(centre) if centre_variance is None else (centre_variance + eps).sqrt()
    diagonal = gain / deviation
    projected = mars_projection(diagonal, centre / centre_deviation, radius)
    return torch.where(projected == diagonal, gain, projected * deviation)


def kernels(model: Model) -> dict[str, nn.Parameter]:
    """Return the encoder's weight matrices and convolutions by name.

    These are what MARS is about: no biases, norms or embeddings.
    """
    return dict(_encoder_tensors(model, "kernel"))


def _encoder_tensors(model: Model, kind: Literal["kernel", "embedding", "gain"]) -> Iterator[tuple[str, nn.Parameter]]:
    roles = model.roles()
    for name, parameter in model.named_parameters():
        if name.startswith("encoder.") and KINDS.get(roles[name]) == kind:
            yield name, parameter


@dataclass(frozen=True)
class MarsProjection(Constraint):
    """Keep every output unit of the encoder near its start.

    It stays within `radius`; infinity lets it go anywhere. `head_radius` bounds the classifier's matrices around the
    origin (None: free). `embeddings` and `norm_gains` add what is free by default: one row per token or position, and
    the gains of layer norms. `norm` 'frobenius' bounds each tensor as a whole instead.
    """

    radius: float = 7.0
    head_radius: float | None = None
    embeddings: bool = False
    norm_gains: bool = False
    norm: Literal["mars", "frobenius"] = "mars"

    CAPTURABLE: ClassVar[bool] = True

    def check(self) -> None:
        self.require("radius", self.radius > 0, "above 0")
        self.require(
            "head_radius", self.head_radius is None or self.head_radius > 0, "above 0, or None for a free head"
        )

    def begin(self, model: Model, reference: Mapping[str, Tensor], context: Context) -> State:
        import torch

        return State(tensors={"projected": torch.zeros((), dtype=torch.int64, device=context.device)})

    def activity(
        self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context
    ) -> dict[str, Activity]:
        projected = float(state.tensors["projected"])
        return {"MarsProjection": Activity(projected, "rows pulled back, over all steps", projected == 0)}

    def apply(self, model: Model, reference: Mapping[str, Tensor], state: State, context: Context) -> None:
        # Encoder kernels and the layers of the head; an embedding table is (..., D) -> (rows, D).
        bounded: dict[str, tuple[Tensor, Tensor | None]] = {
            name: (weight, reference[name]) for name, weight in kernels(model).items()
        }
        if self.embeddings:
            bounded |= {
                name: (table.flatten(0, -2), reference[name].flatten(0, -2))
                for name, table in _encoder_tensors(model, "embedding")
            }
        if self.norm_gains:
            bounded |= {name: (gain, reference[name]) for name, gain in _encoder_tensors(model, "gain")}
        balls = [([*bounded.values()], self.radius)]
        if self.head_radius is not None and model.head is not None:
            balls.append(([(weight, None) for weight in model.head.parameters() if weight.ndim > 1], self.head_radius))
        for pairs, radius in balls:
            weights, centres = [weight for weight, _ in pairs], [centre for _, centre in pairs]
            projected, rows = _projected(weights, centres, radius, self.norm)
            for weight, new in zip(weights, projected, strict=True):
                weight.copy_(new)
            state.tensors["projected"] += rows


@recipe()
def mars(cell: Cell) -> Stage:
    """Fine-tune from the pre-trained weights, and keep every output unit near them."""
    return finetune(cell, constraint=cell.configure(MarsProjection()))
