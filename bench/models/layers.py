"""Dropout, and attention with it, whose random numbers cost little on a CPU: torch draws them one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

LEVELS = 2**16


class Dropout(nn.Dropout):
    """Dropout whose random numbers cost little on a CPU.

    In training each value is zeroed with probability p and the others are scaled up; on a CPU p is rounded to 16 bits.
    """

    def forward(self, values: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return values
        return super().forward(values) if _elsewhere(values) else _dropped(values, self.p)


def use_dropout(network: nn.Module) -> None:
    """Replace torch's dropout everywhere in a network; rates stay."""
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """Attend from queries to keys and values, with dropout.

    Queries (B, H, t, d), keys and values (B, H, T, d) give (B, H, t, d); attention weights are dropped at `rate`.
    `mask`, which broadcasts to (B, H, t, T), is true where a key counts.
    """
    # torch's own kernel where nothing is dropped or random numbers are cheap; else the same by hand, with `_dropped`.
    if rate == 0 or _elsewhere(query):
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=rate)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return _dropped(scores.softmax(dim=-1), rate) @ value


def _elsewhere(values: Tensor) -> bool:
    return values.device.type != "cpu" or torch.compiler.is_compiling()


def _dropped(values: Tensor, rate: float) -> Tensor:
    # torch draws the numbers of its own dropout one by one on a CPU, which takes longer than the layer beside it. Here
    # each 64-bit draw gives four of 16 bits. A value is zeroed where its bits, a number from -32768 to 32767, are among
    # the lowest round(rate · 65536): rate 0.1 becomes 6554 / 65536, and what is kept is scaled by 65536 / 58982.
    count = values.numel()
    bits = torch.empty(-(-count // 4), dtype=torch.int64, device="cpu").random_(-(2**63), None).view(torch.int16)
    zeroed = min(round(rate * LEVELS), LEVELS - 1)  # something is always kept
    kept = bits[:count].view(values.shape) >= zeroed - LEVELS // 2
    return values * kept.to(values.dtype).mul_(LEVELS / (LEVELS - zeroed))
