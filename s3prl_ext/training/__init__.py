"""The training loop: one Runner for every tuning method, in place of s3prl's own."""
