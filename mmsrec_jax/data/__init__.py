"""From raw files to a stored catalog, histories and splits."""
