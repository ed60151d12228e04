"""Structured logs: one JSON object a line on standard error, with the request id of the caller."""

from __future__ import annotations

import logging
import sys

import structlog

from ironworks.model.errors import IronError


def configure(service: str, level: str = "INFO") -> None:
    """Set up logging for this process.

    Every line carries `service` and, within a request, `request_id`.
    """
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.EventRenamer("message"),
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")


def private(error: IronError) -> dict[str, object]:
    """The private context of an error as fields of a log line.

    They are named `ctx_…`, so that none collides with what else the line says.
    """
    return {f"ctx_{key}": value for key, value in error.context.items()}
