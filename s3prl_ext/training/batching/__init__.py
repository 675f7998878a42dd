"""What a step is trained on: endless batches, batches of like length, cached features, the hash of a corpus."""
