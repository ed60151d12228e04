"""Who may call gatewayd."""

from __future__ import annotations

from collections.abc import Mapping

from ironworks.runtime.access.rule import Access

ACCESS: Mapping[str, Access] = {}
