"""What training costs on this computer; the page that is written begins with what follows.

Written by `python -m bench.speed`, one section per device; a run replaces what it measured itself and nothing else.
*Ours* is the suite's training loop on random examples in memory, with the papers' schedules. A number with *x* says how
many times as fast as another loop on the same examples ours was: the ratio of the medians, and the least and the
greatest ratio of a round, all taking turns in one run, each in a process of its own.

- *released*: a plain loop on transformers' network in the order of the released code, float32, eager attention
- *same precision*: that loop in the precision of ours, with fused attention
- *Trainer*: transformers' `Trainer` in the same precision with fused AdamW, texts grouped by length, compiled where
  that helps
- *bare*: forward, backward and AdamW of the reference's network alone, on batches that lie ready
- *share*: the floating-point operations of our loop per second in those of the fastest of several matrix products,
  measured in the same run and precision
- *others*: the greatest share of the cores that anything else on the computer used in a round
"""
