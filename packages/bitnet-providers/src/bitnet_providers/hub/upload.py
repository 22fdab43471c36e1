"""Uploads to the Hugging Face Hub, through huggingface_hub: who may write where is asked before anything is sent."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.names import HubName
from bitnet_providers.hub.snapshots import (
    RepoType,
    bars_on_terminals,
    endpoint,
    first_line,
    is_offline,
    is_transport_error,
    library,
    page_of,
)

T = TypeVar("T")

TOKEN_FIX = "put a token that may write into HF_TOKEN (or run `hf auth login`)"


@attrs.frozen(kw_only=True)
class Upload:
    """What a repository gets, in one commit."""

    repo: str
    """``ORG/NAME``."""
    repo_type: RepoType
    files: Mapping[str, Path | bytes]
    """Path in the repository → a file of this machine, or its content."""
    private: bool = True

    @property
    def page(self) -> str:
        """Its address on the Hub."""
        return page_of(self.repo, self.repo_type)


@attrs.frozen(kw_only=True)
class Target:
    """The repository of an upload, as it is before."""

    upload: Upload
    exists: bool
    private: bool
    others: tuple[str, ...] = ()
    """Files that are there, and that the upload neither replaces nor removes."""


def check_name(repo: str) -> None:
    """Raises ProviderError where the Hub takes no repository of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        if repo.count("/") != 1:
            raise HFValidationError(f"{repo!r} has no owner" if "/" not in repo else f"{repo!r} is a path")
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ProviderError(
            first_line(error), "write ORG/NAME: your account or organisation, a slash, a name"
        ) from None


def check_rights(uploads: Iterable[Upload]) -> list[Target]:
    """Whether this account may write to all of them, before anything is created or sent. Raises ProviderError.

    A public repository takes nothing that is to be private.
    """
    hub = library()
    if is_offline():
        raise ProviderError("HF_HUB_OFFLINE is set", "unset it to upload")
    token = hub.get_token()
    if not token:
        raise ProviderError("the Hub takes no upload without a token, and none was found", TOKEN_FIX)
    api = hub.HfApi(endpoint=endpoint(), token=token)
    account = _asked("the Hub", lambda: api.whoami())
    role = (account.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise ProviderError(f"the token of {account['name']} may only read", TOKEN_FIX)
    owners = [str(account["name"]), *(str(each["name"]) for each in account.get("orgs") or ())]
    targets = []
    for upload in uploads:
        owner = upload.repo.partition("/")[0]
        if owner.lower() not in [name.lower() for name in owners]:
            raise ProviderError(
                f"{upload.repo}: your account doesn't belong to {owner}",
                f"choose one that you may write to: {', '.join(owners)}; or use another token",
            )
        targets.append(_target(api, upload))
    return targets


def send(target: Target, message: str) -> str:
    """Create the repository where it isn't there, and send its files as one commit; its address. Raises ProviderError.

    Files that a stopped upload has sent are not sent again.
    """
    hub, upload = library(), target.upload
    api = hub.HfApi(endpoint=endpoint())
    operations = [
        hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file if isinstance(file, bytes) else str(file))
        for name, file in upload.files.items()
    ]

    def act() -> str:
        if not target.exists:
            api.create_repo(upload.repo, repo_type=upload.repo_type, private=upload.private, exist_ok=True)
        api.create_commit(upload.repo, operations, repo_type=upload.repo_type, commit_message=message)
        return upload.page

    with bars_on_terminals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Hub's remarks on a card, and the library's on itself
        return _asked(upload.repo, act)


def licence_of(name: HubName) -> dict[str, str]:
    """``license``, ``license_name`` and ``license_link`` of a model's card, as far as it states them; asks the Hub.

    Raises ProviderError where it can't be asked.
    """
    hub = library()
    if is_offline():
        raise ProviderError(f"{name}: HF_HUB_OFFLINE is set", "unset it, or give the licence")
    info = _asked(str(name), lambda: hub.HfApi(endpoint=endpoint()).model_info(name.repo, revision=name.revision))
    card = info.card_data.to_dict() if info.card_data is not None else {}
    keys = ("license", "license_name", "license_link")
    return {key: str(card[key]) for key in keys if isinstance(card.get(key), str) and card[key]}


def _target(api: Any, upload: Upload) -> Target:
    from huggingface_hub.errors import RepositoryNotFoundError

    def look() -> Any:
        try:
            return api.repo_info(upload.repo, repo_type=upload.repo_type)
        except RepositoryNotFoundError:
            return None

    info = _asked(upload.repo, look)
    if info is None:
        return Target(upload=upload, exists=False, private=upload.private)
    if upload.private and not info.private:
        raise ProviderError(
            f"{upload.repo}: the {upload.repo_type} is there already, and everybody can read it",
            "say --public, choose another name, or make it private on its page",
        )
    there = {each.rfilename for each in info.siblings or ()} - {".gitattributes"}
    return Target(
        upload=upload, exists=True, private=bool(info.private), others=tuple(sorted(there - set(upload.files)))
    )


def _asked(what: str, question: Callable[[], T]) -> T:
    """Its answer. Raises ProviderError with the fix for whatever the Hub or the way to it says."""
    from huggingface_hub import errors

    try:
        return question()
    except errors.HfHubHTTPError as error:
        raise _refused(what, error) from None
    except (
        ValueError,
        RuntimeError,
    ) as error:  # a card that the Hub refuses; a file that failed in a thread of its own
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(what, error.__cause__) from None
        if error.__cause__ is not None and is_transport_error(error.__cause__):
            raise _unreachable(what, error.__cause__) from None
        raise ProviderError(
            f"{what}: the Hub did not take it ({first_line(error)})", "correct that, and push again"
        ) from error
    except Exception as error:
        if not is_transport_error(error) and not isinstance(error, OSError):
            raise
        raise _unreachable(what, error) from None


def _refused(what: str, error: Any) -> ProviderError:
    status = error.response.status_code
    said = " ".join((getattr(error, "server_message", None) or first_line(error)).split())[:200]
    if status == 401:
        return ProviderError(f"{what}: the Hub doesn't know your token (401)", TOKEN_FIX)
    if status == 403:
        return ProviderError(f"{what}: your token may not write there (403: {said})", TOKEN_FIX)
    again = "push again later: what was sent is not sent twice" if status >= 429 else "correct that, and push again"
    return ProviderError(f"{what}: the Hub answered {status} ({said})", again)


def _unreachable(what: str, error: BaseException) -> ProviderError:
    endpoint_too = ", and that HF_ENDPOINT is right" if endpoint() else ""
    why = f"{what}: the Hub was not reached ({first_line(error)})"
    return ProviderError(why, f"see that you are online{endpoint_too}; push again: what was sent is not sent twice")
