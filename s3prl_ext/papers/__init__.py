"""The tables of the papers on MAM and AD-TUNING, next to which results are printed."""
