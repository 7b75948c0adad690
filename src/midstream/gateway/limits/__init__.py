"""Limits on callers and calls: keys, tokens, admission, backpressure and prompt lengths."""
