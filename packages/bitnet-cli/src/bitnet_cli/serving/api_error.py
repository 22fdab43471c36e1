"""An error as OpenAI's API tells it."""

from typing import Any

import attrs

from bitnet_cli.errors import Problem


@attrs.frozen
class ApiError(Exception):
    """Something for the client, with an HTTP status."""

    status: int
    why: str
    fix: str = ""
    param: str | None = None
    """The request's field that it is about."""
    code: str | None = None
    """A short name for programs, such as ``invalid_value``."""
    retry_after_s: int | None = None

    @property
    def kind(self) -> str:
        match self.status:
            case 401 | 403:
                return "authentication_error"
            case 429:
                return "rate_limit_error"
            case status if status >= 500:
                return "server_error"
        return "invalid_request_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def __str__(self) -> str:
        return str(Problem(self.why, self.fix))
