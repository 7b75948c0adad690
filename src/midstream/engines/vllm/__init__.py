"""Samples from a running vLLM server."""

from midstream.engines.vllm.engine import VLLMEngine

__all__ = ["VLLMEngine"]
