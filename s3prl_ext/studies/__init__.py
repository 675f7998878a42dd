"""Studies: many runs from one file, on one machine or on a cluster, with the best setting of each cell chosen on dev."""
