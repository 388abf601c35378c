"""The sandbox: runs networks one by one in confined children of a warm fork server.

:class:`Sandbox` is the main process's side. It owns the validation labels, the metric and the
clock.
"""

from archloop.sandbox.client import Sandbox
from archloop.sandbox.confine import available_isolation, why_not
from archloop.sandbox.self_test import SelfTest, self_test

__all__ = ["Sandbox", "SelfTest", "available_isolation", "self_test", "why_not"]
