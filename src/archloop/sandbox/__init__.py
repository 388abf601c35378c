"""The sandbox: runs one network at a time in a confined child of a warm fork server.

:class:`Sandbox` is the main process's side. It owns the validation labels, the metric and the
clock.
"""

from archloop.sandbox.client import Sandbox
from archloop.sandbox.confine import available_isolation
from archloop.sandbox.self_test import SelfTest, self_test

__all__ = ["Sandbox", "SelfTest", "available_isolation", "self_test"]
