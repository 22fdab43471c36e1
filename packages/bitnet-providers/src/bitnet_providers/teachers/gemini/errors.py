"""Gemini's refusals: an HTTP status and its JSON (a google.rpc.Status) into the kind of error that it is.

Source: https://ai.google.dev/gemini-api/docs/troubleshooting and google/rpc/error_details.proto.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.common.http_errors import Redactor, status_error

_DURATION = re.compile(r"(\d+(?:\.\d+)?)s")


def read_error(
    who: str, status: int, body: Any, headers: Mapping[str, str], *, key: str, model: str, redact: Redactor
) -> ProviderError:
    """The error for an HTTP status and its body. `key`: the variable that holds the key."""
    error = _error(body)
    message = redact(error.get("message") or "")
    said = redact(": ".join(filter(None, (str(error.get("status") or ""), message))))
    told = f"{who} answered {status}: {said}"
    details = list(_details(error))
    lower = message.lower()
    if status == 400:
        if "api key" in lower or any(each.get("reason") == "API_KEY_INVALID" for each in details):
            return status_error(401, said, who=who, key=key)
        if "logprob" in lower:
            return ProviderError(
                f"{told}; {model} gives no log-probabilities",
                "set collect.top_k = 0 (a student then learns from the sampled tokens alone), or name another model",
            )
        if "thinking" in lower:
            return ProviderError(f"{told}; {model} takes no such teacher.thinking_budget", "take it out, or change it")
        if error.get("status") == "FAILED_PRECONDITION":  # a region without the service, billing that is off
            return ProviderError(
                f"{told}; this is about the account or the place, so every request would get it",
                "see that billing is on and that the service is there for your region",
            )
    if status == 429 and any(_is_final(violation) for each in details for violation in _violations(each)):
        return ProviderError(f"{told}; the day's quota is used up", "run again when it is full: nothing is lost")
    waits = (_DURATION.fullmatch(str(each.get("retryDelay") or "")) for each in details)
    wait_s = next((float(match[1]) for match in waits if match), None)
    return status_error(status, said, who=who, key=key, headers=headers, wait_s=wait_s)


def _error(body: Any) -> Mapping[str, Any]:
    """``{"error": {...}}``, or a list of one; empty for any other shape."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    error = body.get("error", body) if isinstance(body, Mapping) else None
    return error if isinstance(error, Mapping) else {}


def _details(error: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    details = error.get("details")
    yield from (each for each in details if isinstance(each, Mapping)) if isinstance(details, list) else ()


def _violations(detail: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Those of a QuotaFailure, and what an ErrorInfo says in its metadata."""
    violations = detail.get("violations")
    if isinstance(violations, list):
        yield from (each for each in violations if isinstance(each, Mapping))
    metadata = detail.get("metadata")
    if isinstance(metadata, Mapping):
        yield {"quotaId": metadata.get("quota_limit"), "quotaValue": metadata.get("quota_limit_value")}


def _is_final(violation: Mapping[str, Any]) -> bool:
    """A quota of the day, or one of 0: waiting for a minute won't do."""
    return "PerDay" in str(violation.get("quotaId") or "") or str(violation.get("quotaValue")) == "0"
