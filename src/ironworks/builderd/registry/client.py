"""Speak to one registry: redirects, tokens, and what its refusals mean.

Source: OCI distribution specification 1.1; Docker's "Token Authentication Specification".
"""

from __future__ import annotations

import base64
import errno
import http.client
import json
import re
import ssl
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import SplitResult, urlencode, urljoin, urlsplit

from ironworks.builderd.registry.guard import Guard, name_of
from ironworks.builderd.registry.plan import Place
from ironworks.model.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    IronError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
)

MAX_DOCUMENT_BYTES = 4 * 1024 * 1024
_MAX_TOKEN_BYTES = 1 << 20
_MAX_REDIRECTS = 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_OK = frozenset({200, 206})
_HUB = {"docker.io": "registry-1.docker.io"}
_PARAMETER = re.compile(r'([a-z]+)="([^"]*)"')
_KINDS = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_AGENT = "ironworks"


class Client:
    """Asks one place."""

    def __init__(self, place: Place, guard: Guard, image: str) -> None:
        """Nothing is asked yet; `image` is what people call it."""
        self._place = place
        self._guard = guard
        self._image = image
        scheme = guard.scheme_of(place.registry)
        host = _HUB.get(place.registry, place.registry)
        self._root = f"{scheme}://{host}/v2/{place.repository}"
        self._authorization = ""

    def manifest(self, reference: str) -> bytes:
        """A manifest or an index, as it came.

        Raises:
            InvalidRequest: it is too large, or of a kind that is not known.
            IronError: the registry does not give it.
        """
        path = f"/manifests/{reference}"
        with self.opened(path, {"Accept": ", ".join(_KINDS)}) as response:
            data = response.read(MAX_DOCUMENT_BYTES + 1)
            kind = response.headers.get_content_type()
        if len(data) > MAX_DOCUMENT_BYTES:
            raise InvalidRequest(
                f"The manifest of {self._image} is larger than an image's may be.",
                hint="It may not be a container image.",
            )
        if kind.startswith("application/vnd.") and kind not in _KINDS:
            raise InvalidRequest(
                f"{self._image} has a type of manifest that is not known here.",
                hint="Push it again with a current docker, podman or skopeo.",
            )
        return data

    @contextmanager
    def opened(self, path: str, headers: Mapping[str, str]) -> Generator[http.client.HTTPResponse]:
        """The registry's answer to a GET below the repository; its body is yet to be read.

        Raises:
            IronError: what the registry, or the way to it, refuses.
        """
        with _explained(self._image), self._ask(self._root + path, headers) as first:
            if first.status in _OK:
                yield first
                return
            if first.status != http.HTTPStatus.UNAUTHORIZED:
                raise self._refusal(first.status)
            challenges = first.headers.get_all("WWW-Authenticate") or []
        with _explained(self._image):
            self._authorize(challenges)
        with _explained(self._image), self._ask(self._root + path, headers) as second:
            if second.status not in _OK:
                raise self._refusal(second.status)
            yield second

    @contextmanager
    def _ask(
        self, url: str, headers: Mapping[str, str], authorization: str | None = None
    ) -> Generator[http.client.HTTPResponse]:
        """The answer at the end of all redirects."""
        said = self._authorization if authorization is None else authorization
        first = _origin(urlsplit(url))
        for _ in range(_MAX_REDIRECTS + 1):
            parts = urlsplit(url)
            # Whoever is led to is not told what the registry may know.
            mine = {"Authorization": said} if said and _origin(parts) == first else {}
            host = parts.hostname or ""
            connection = self._guard.connect(parts.scheme, host, parts.port, self._image)
            try:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                told = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers, **mine}
                connection.request("GET", target, headers=told)
                response = connection.getresponse()
                place = response.headers.get("Location")
                if response.status in _REDIRECTS and place:
                    url = urljoin(url, place)
                    continue
                if response.status == http.HTTPStatus.UNAUTHORIZED and not _same(url, first):
                    raise self._refusal(http.HTTPStatus.FORBIDDEN)
                yield response
                return
            finally:
                connection.close()
        raise Unavailable(
            f"The registry of {self._image} redirects in circles.",
            hint="Tell whoever runs the registry.",
        )

    def _authorize(self, challenges: list[str]) -> None:
        place = self._place
        pair = base64.b64encode(f"{place.username}:{place.password}".encode()).decode()
        basic = f"Basic {pair}" if place.username else ""
        for challenge in challenges:
            scheme, _, rest = challenge.partition(" ")
            if scheme.lower() == "bearer":
                self._authorization = f"Bearer {self._token(dict(_PARAMETER.findall(rest)), basic)}"
                return
            if scheme.lower() == "basic" and basic:
                self._authorization = basic
                return
        raise self._refusal(http.HTTPStatus.UNAUTHORIZED)

    def _token(self, wanted: Mapping[str, str], basic: str) -> str:
        scope = wanted.get("scope") or f"repository:{self._place.repository}:pull"
        query = {"service": wanted.get("service", ""), "scope": scope}
        realm = wanted.get("realm", "")
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        with self._ask(url, {}, basic) as response:
            if response.status not in _OK:
                raise self._refusal(response.status)
            data = response.read(_MAX_TOKEN_BYTES)
        try:
            answer = cast("dict[str, Any]", json.loads(data))
            token = answer.get("token") or answer.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise Unavailable(f"The registry of {self._image} gives no token.")
        return token

    def _refusal(self, status: int) -> IronError:
        context = {"registry": self._place.registry, "status": status}
        if status in (http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN):
            return PermissionDenied(
                f"The registry does not hand out {self._image}: it does not exist, or needs "
                "credentials.",
                hint="Check its name, or store a credential: `iron registry login`.",
                context=context,
            )
        if status == http.HTTPStatus.NOT_FOUND:
            return NotFound(
                f"There is no image {self._image}.", hint="Check its name and tag.", context=context
            )
        if status == http.HTTPStatus.TOO_MANY_REQUESTS:
            return Unavailable(
                f"The registry of {self._image} limits how often it may be asked.",
                hint="Try again later.",
                context=context,
            )
        if status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
            return Unavailable(
                f"The registry of {self._image} cannot be reached: it answers {status}.",
                hint="Try again later.",
                context=context,
            )
        return InvalidRequest(f"The registry answers {status} for {self._image}.", context=context)


def _origin(parts: SplitResult) -> tuple[str, str]:
    return parts.scheme, name_of(parts.scheme, parts.hostname or "", parts.port)


def _same(url: str, origin: tuple[str, str]) -> bool:
    return _origin(urlsplit(url)) == origin


@contextmanager
def _explained(image: str) -> Generator[None]:
    """What goes wrong on the way, as the image's owner reads it."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise FailedPrecondition(
            f"The certificate of the registry of {image} is not one that this machine trusts.",
            hint="Install its authority's certificate on the platform's machine.",
            context={"error": str(error)},
        ) from error
    except ssl.SSLError as error:
        raise FailedPrecondition(
            f"The registry of {image} speaks no TLS.",
            hint="Give it a certificate, or name it in the setting insecure_registries.",
            context={"error": str(error)},
        ) from error
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"The registry of {image} stopped sending.", hint="Try again later."
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            raise ResourceExhausted(
                f"There is no room on the disk for image {image}.",
                hint="Free space in the data directory, then deploy again.",
            ) from error
        raise Unavailable(
            f"The registry of {image} cannot be reached.",
            hint="Check its name and the platform's network, then try again.",
            context={"error": repr(error)},
        ) from error
