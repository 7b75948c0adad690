"""Who may call and how much: keys, tokens, admission, retries and lengths."""
