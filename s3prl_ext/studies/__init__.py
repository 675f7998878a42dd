"""Studies: many runs from one file, here or on a cluster, with the best setting of each cell chosen on dev."""
