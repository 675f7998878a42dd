"""Speech models of transformers as s3prl upstreams: one file for each way of reading audio."""
