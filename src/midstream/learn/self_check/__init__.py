"""Whether the path from sampling to the gradient is right, for `midstream doctor --training`."""

from midstream.learn.self_check.run import self_check

__all__ = ["self_check"]
