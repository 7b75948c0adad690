"""Tools that use the network: `web_search`, `web_fetch`, `wikipedia`. Midstream itself needs none of them."""
