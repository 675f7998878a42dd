"""The upstream ``merged_attention``: a speech model with another model's attention merged into it (MAM)."""
