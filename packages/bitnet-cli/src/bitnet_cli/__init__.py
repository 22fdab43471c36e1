"""The command ``bitnet``, and `run`, which does the same from Python."""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_cli.errors import UserError
    from bitnet_cli.pipeline.from_python import RunFailedError, run

__all__ = ["RunFailedError", "UserError", "run"]

lazy_names(
    globals(),
    {
        "errors": ("UserError",),
        "pipeline.from_python": (
            "RunFailedError",
            "run",
        ),
    },
)
