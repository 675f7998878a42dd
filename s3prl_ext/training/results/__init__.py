"""What a run measured: scores on a split, their intervals, and ``result.json`` with where its numbers come from."""
