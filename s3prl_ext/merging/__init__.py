"""What to do with the attention of two models: interpolation by Eq. 1 and 2 of the MAM paper (torch only, pure)."""
