"""Child networks: which of a model's weights train (Fisher information or chance), and training only those."""
