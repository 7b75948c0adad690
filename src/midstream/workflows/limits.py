"""How large a workflow may be, and how much one run of it may use."""

from __future__ import annotations

from pydantic import Field

from midstream.core.config import Config


class WorkflowLimits(Config):
    """Limits of a workflow's text, its graph, and the values of a run. The text is measured before it is parsed."""

    text_chars: int = Field(default=100_000, ge=100)
    """Characters of a whole workflow: the JSON, or the code with its prompts."""
    code_chars: int = Field(default=20_000, ge=100)
    """Characters of the graph code."""
    prompt_chars: int = Field(default=8_000, ge=1)
    """Characters of one prompt."""
    prompts: int = Field(default=32, ge=0)
    """Prompts of a workflow."""
    statements: int = Field(default=120, ge=1)
    """Statements of the graph code."""
    nodes: int = Field(default=32, ge=1)
    """Operator calls in the graph code."""
    depth: int = Field(default=5, ge=1)
    """Nesting of loops and branches."""
    expression_depth: int = Field(default=16, ge=1)
    """Nesting of an expression."""
    loop_count: int = Field(default=10, ge=1)
    """Rounds of one loop; also of one over a list."""
    list_items: int = Field(default=64, ge=1)
    """Items of a list that a workflow makes."""
    model_calls: int = Field(default=40, ge=1)
    """Model calls of a run, in the worst case."""
    steps: int = Field(default=2_000, ge=1)
    """Statements a run may execute, and rounds of comprehensions."""
    value_chars: int = Field(default=200_000, ge=1)
    """Characters of one text that a run makes."""
