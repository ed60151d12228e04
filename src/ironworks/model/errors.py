"""One error taxonomy, grouped by what the caller should do about it.

Every error that may leave a service is an `IronError`. Its message is public: one sentence that
says what is wrong, and a hint that says what to do. What only an operator may see goes into
`context`, which is logged and never sent. `runtime.rpc.errors` maps the classes to Connect codes,
once, for all services.

| the caller should …             | class |
|---|---|
| change the request              | InvalidRequest, NotFound, AlreadyExists |
| get another credential          | Unauthenticated, PermissionDenied |
| change the state first          | FailedPrecondition |
| read again and repeat           | Aborted |
| free something, or wait         | ResourceExhausted |
| repeat the same, with back-off  | Unavailable, DeadlineExceeded |
| wait for a newer Ironworks      | Unimplemented |
| tell the operator               | Internal, DataLoss |
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar


class IronError(Exception):
    """Base of all errors that cross a service boundary.

    Attributes:
        message: Public sentence: what is wrong.
        hint: Public sentence: what to do; may be empty.
        context: Private facts for the log; never sent to a caller.
    """

    code: ClassVar[str] = "internal"
    exit_status: int = 70
    """Exit status of a command that ends with this error; see `docs/reference/exit-statuses.md`."""
    retryable: ClassVar[bool] = False
    """Whether the very same request may succeed when it is repeated later."""

    def __init__(
        self, message: str, *, hint: str = "", context: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context: dict[str, object] = dict(context or {})

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InvalidRequest(IronError):
    """The request is malformed or out of bounds: change it."""

    code = "invalid_argument"
    exit_status = 65


class NotFound(IronError):
    """No such thing, or none that this caller may know of (the answer is the same for both)."""

    code = "not_found"
    exit_status = 66


class AlreadyExists(IronError):
    """Something else has this id or name, or an idempotency key was used for another request."""

    code = "already_exists"
    exit_status = 67


class Unauthenticated(IronError):
    """No credential, or one that is not valid (any more)."""

    code = "unauthenticated"
    exit_status = 76


class PermissionDenied(IronError):
    """The credential is valid and does not allow this."""

    code = "permission_denied"
    exit_status = 77


class FailedPrecondition(IronError):
    """The state does not allow this now; another call has to come first."""

    code = "failed_precondition"
    exit_status = 68


class Aborted(IronError):
    """Lost a race against another change: read again, then repeat."""

    code = "aborted"
    exit_status = 75
    retryable = True


class ResourceExhausted(IronError):
    """A quota, a limit or the host's capacity is used up."""

    code = "resource_exhausted"
    exit_status = 71


class Unavailable(IronError):
    """Something needed is down or unreachable for the moment: repeat with back-off."""

    code = "unavailable"
    exit_status = 69
    retryable = True


class DeadlineExceeded(IronError):
    """It took longer than the caller's or our own limit."""

    code = "deadline_exceeded"
    exit_status = 74
    retryable = True


class Unimplemented(IronError):
    """The API has it, this version does not do it yet."""

    code = "unimplemented"
    exit_status = 72


class Internal(IronError):
    """A fault of ours."""

    code = "internal"
    exit_status = 70


class DataLoss(IronError):
    """Bytes that were stored are gone or changed."""

    code = "data_loss"
    exit_status = 73


def all_errors() -> tuple[type[IronError], ...]:
    """Every concrete class of the taxonomy."""
    return tuple(IronError.__subclasses__())


def kind_of(code: str) -> type[IronError]:
    """The class that has a code; Internal if none has."""
    return next((kind for kind in all_errors() if kind.code == code), Internal)
