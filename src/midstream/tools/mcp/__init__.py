"""Model Context Protocol: servers' tools as a toolset (`client`), and any toolset as a server (`server`)."""
