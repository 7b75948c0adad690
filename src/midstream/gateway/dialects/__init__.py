"""One module per API: parses its requests and formats its answers."""
