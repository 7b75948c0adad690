"""Midstream trains LLM agents in the flow."""
