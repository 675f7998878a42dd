"""Models: what is known of a family of them, hashes of their tensors, guards that leave them as found."""
