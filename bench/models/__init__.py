"""The networks: one file per modality, built from timm's and transformers' blocks."""
