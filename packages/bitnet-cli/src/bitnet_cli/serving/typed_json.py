"""The fields of a request's JSON, taken one by one with their types; what is left over is refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from bitnet_cli.serving.api_error import ApiError
from bitnet_cli.wording.did_you_mean import nearest


class Fields:
    """Each field may be null or absent: then the default counts. Every method raises ApiError (400)."""

    def __init__(self, body: object, where: str = "") -> None:
        """`where`: the path of this object in the request, with a dot at its end."""
        if not isinstance(body, Mapping):
            raise ApiError(400, f"{where.rstrip('.') or 'the body'}: expected a JSON object", "send one")
        self._left = {name: value for name, value in body.items() if value is not None}
        self._known: list[str] = []
        self._where = where

    def take(self, name: str) -> Any:
        """The value as it came; None where there is none."""
        self._known.append(name)
        return self._left.pop(name, None)

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self.take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise self.refused(name, f"expected a number from {least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.refused(name, f"expected a whole number from {least} to {most}")
        return value

    def flag(self, name: str) -> bool:
        value = self.take(name)
        if value is not None and not isinstance(value, bool):
            raise self.refused(name, "expected true or false")
        return bool(value)

    def text(self, name: str) -> str | None:
        value = self.take(name)
        return None if value is None else self.as_text(name, value)

    def as_text(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            raise self.refused(name, "expected a text")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.refused(name, "holds half a surrogate pair, which is no character", "leave it out") from None
        return value

    def only(self, allowed: Mapping[str, Sequence[Any]]) -> None:
        """Fields that may be sent, but only with the values that change nothing here."""
        for name, values in allowed.items():
            value = self.take(name)
            if value is not None and value not in values:
                values_text = " or ".join(repr(each) for each in values)
                raise self.refused(
                    name, f"this server only takes {values_text}", "leave it out", code="unsupported_parameter"
                )

    def ignore(self, *names: str) -> None:
        for name in names:
            self.take(name)

    def end(self) -> None:
        """Raises ApiError where something unknown is left."""
        for name in self._left:
            near = nearest(name, self._known)
            fix = "leave it out" if near is None else f'did you mean "{near}"?'
            raise self.refused(name, "unknown field", fix, code="unknown_parameter")

    def refused(self, name: str, why: str, fix: str = "", code: str = "invalid_value") -> ApiError:
        return ApiError(400, f"{self._where}{name}: {why}", fix, f"{self._where}{name}", code)
