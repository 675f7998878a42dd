"""Where query, key and value matrices live in a state dict, and how to read, replace and hash them (torch only)."""
