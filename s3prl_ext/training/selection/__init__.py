"""Choosing the weights of a child network for a task, and the Fisher pass behind it."""
