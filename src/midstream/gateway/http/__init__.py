"""The HTTP side of the gateway: routes, middleware, bodies, replies and errors."""
