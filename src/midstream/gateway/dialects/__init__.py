"""One module an API: what its clients send becomes a call, and answers become what they expect to read."""
