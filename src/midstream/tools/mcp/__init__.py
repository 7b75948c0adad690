"""Model Context Protocol: the tools of servers as a toolset (`client`), and any toolset as a server (`server`)."""
