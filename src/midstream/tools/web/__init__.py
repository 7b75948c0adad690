"""Tools that reach the network: `web_search`, `web_fetch`, `wikipedia`. None is needed to run Midstream."""
