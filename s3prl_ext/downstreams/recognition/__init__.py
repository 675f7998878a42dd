"""What the speech recognition tasks share: configuration, CTC head, data, the expert itself."""
