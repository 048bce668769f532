"""Builds the working parts of the gateway: use-cases on their adapters, and the workers that run them.

Nothing is opened, listened to or started here; `service` does that, in its order. `whole` joins what the
other modules assemble.
"""

from __future__ import annotations

from drimbox.assembly.whole import Assembly

__all__ = ["Assembly"]
