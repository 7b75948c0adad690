"""LangGraph's checkpoints in our store: `StoreSaver`. Needs the extra `langgraph`."""

from midstream.integrations.langgraph.saver import StoreSaver

__all__ = ["StoreSaver"]
