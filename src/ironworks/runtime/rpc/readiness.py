"""Whether a service says that it can do its work."""

from __future__ import annotations

from typing import Final

from pyqwest import Client, HTTPTransport, ReadError, RemoteProtocolError, WriteError

from ironworks.runtime.rpc.direct import DIRECT

_CONNECT_SECONDS: Final = 1.0
_ANSWER_SECONDS: Final = 3.0
_OK: Final = 200
NOT_THERE: Final = (OSError, ReadError, RemoteProtocolError, WriteError)
"""What the HTTP client raises where nobody answers. Who ends while being asked resets the
connection: there are three errors for that, none of them an OSError."""


class Readiness:
    """Asks services' `/readyz`, directly."""

    def __init__(self) -> None:
        self._http = Client(
            HTTPTransport(proxy=DIRECT, connect_timeout=_CONNECT_SECONDS, timeout=_ANSWER_SECONDS)
        )

    async def of(self, url: str) -> bool:
        """Whether the service at `url` is there and ready; never raises for one that is not."""
        try:
            answer = await self._http.get(f"{url}/readyz")
        except NOT_THERE:
            return False
        return answer.status == _OK
