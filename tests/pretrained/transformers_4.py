"""The names of ViTMAE's tensors in transformers 4, which the released checkpoints have."""

# transformers 5, in memory -> transformers 4
OLD = {
    "vit.layers.": "vit.encoder.layer.",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def transformers_4(name: str) -> str:
    """Return a tensor's name of transformers 5 as transformers 4 has it."""
    for new_spelling, old_spelling in OLD.items():
        name = name.replace(new_spelling, old_spelling)
    return name
