"""One interceptor for all four kinds of RPC method: a context manager around the call."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, TypeVar

from connectrpc.request import RequestContext

_Req = TypeVar("_Req")
_Res = TypeVar("_Res")
Context: TypeAlias = RequestContext[Any, Any]


class Around:
    """Runs every call within `block(method name)`; both sides of the wire use it for errors."""

    def __init__(self, block: Callable[[str], AbstractContextManager[None]]) -> None:
        self._block = block

    async def intercept_unary(
        self,
        call_next: Callable[[_Req, Context], Awaitable[_Res]],
        request: _Req,
        ctx: Context,
    ) -> _Res:
        """One request, one answer."""
        with self._block(ctx.method.name):
            return await call_next(request, ctx)

    async def intercept_client_stream(
        self,
        call_next: Callable[[AsyncIterator[_Req], Context], Awaitable[_Res]],
        request: AsyncIterator[_Req],
        ctx: Context,
    ) -> _Res:
        """Many requests, one answer."""
        with self._block(ctx.method.name):
            return await call_next(request, ctx)

    async def intercept_server_stream(
        self,
        call_next: Callable[[_Req, Context], AsyncIterator[_Res]],
        request: _Req,
        ctx: Context,
    ) -> AsyncIterator[_Res]:
        """One request, many answers."""
        with self._block(ctx.method.name):
            async for message in call_next(request, ctx):
                yield message

    async def intercept_bidi_stream(
        self,
        call_next: Callable[[AsyncIterator[_Req], Context], AsyncIterator[_Res]],
        request: AsyncIterator[_Req],
        ctx: Context,
    ) -> AsyncIterator[_Res]:
        """Many of both."""
        with self._block(ctx.method.name):
            async for message in call_next(request, ctx):
                yield message
