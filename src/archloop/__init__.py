"""archloop: a code LLM in a closed loop that designs neural networks and is trained on what worked."""

from __future__ import annotations

__version__ = "0.1.0"
