"""Connections that never go through a proxy."""

from __future__ import annotations

from pyqwest import Proxy

DIRECT = Proxy("http://127.0.0.1:9", no_proxy="*,0.0.0.0/0,::/0")
"""No proxy for any name or address.

The HTTP client offers no other way to say so: with no proxy configured it follows HTTP_PROXY, and
calls on one machine would leave it. The address is never used.
"""
