"""What stands around every handler: our errors become Connect's, surprises become Internal."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from connectrpc.errors import ConnectError

from ironworks.model.errors import Internal, IronError
from ironworks.runtime.log import private
from ironworks.runtime.rpc.errors import to_connect

_log = structlog.stdlib.get_logger()


@contextmanager
def mapped(method: str) -> Generator[None]:
    """Errors that leave the block are Connect errors of our taxonomy."""
    try:
        yield
    except IronError as error:
        level = logging.ERROR if isinstance(error, Internal) else logging.INFO
        _log.log(
            level, "call_failed", method=method, code=error.code, error=str(error), **private(error)
        )
        raise to_connect(error) from error
    except ConnectError:
        raise
    except Exception as error:
        _log.exception("call_crashed", method=method)
        fault = Internal("Something went wrong here; the log has it under this request's id.")
        raise to_connect(fault) from error
