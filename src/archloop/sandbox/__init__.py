"""The sandbox: runs networks one by one in confined children of a warm fork server.

:class:`Sandbox` is the main process's side. It owns the validation labels, the metric and the
clock.
"""

from archloop.sandbox.confine.confine import available_isolation, require, why_not
from archloop.sandbox.host.client import Sandbox
from archloop.sandbox.host.draws import new_key

__all__ = ["Sandbox", "available_isolation", "new_key", "require", "why_not"]
