"""Many merges of one pair of models, scored in one process: lambda grids, layer sets, noise controls."""
