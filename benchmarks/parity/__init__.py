"""Compares Midstream with TRL: advantages, loss and gradient, twenty updates, learning.

    make parity
    python -m benchmarks.parity --levels A B

Level A compares advantages, B loss and gradient of a frozen batch over a grid of losses, C twenty optimizer steps on
the same tokens, D two systems that sample and learn by themselves. TRL is run as it is installed: its trainers are
constructed with their public arguments and their own methods are called; nothing of theirs is copied here.
`docs/parity.md` says what is compared, what differs on purpose, and what was measured.
"""

import os

# Before anything of Hugging Face is imported, which reads these once.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
