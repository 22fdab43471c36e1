"""Models of the Hugging Face Hub by name, through huggingface_hub: which commit a name is, and its files.

Its cache, its token (``HF_TOKEN``, or ``hf auth login``), its offline mode (``HF_HUB_OFFLINE``) and its ``HF_ENDPOINT``
count. Of a model only safetensors, tokenizer and configuration are fetched: nothing that unpickles, and no program.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.names import HubName, is_commit

TOKENIZER_FILES = (
    "tokenizer*", "*.tiktoken", "*.model", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json",
    "chat_template*", "additional_chat_templates/*.jinja",
)  # fmt: skip
MODEL_FILES = ("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", *TOKENIZER_FILES)
OTHER_WEIGHTS = ("*/*.safetensors", "consolidated*")
"""Copies of the weights in other formats: in folders (ONNX, adapters), and as their makers had them."""

INSTALL = "pip install 'bitnet-providers[local]'"

RepoType = Literal["model", "dataset"]
T = TypeVar("T")


def pinned(name: HubName, repo_type: RepoType = "model") -> HubName:
    """The same with the commit that its revision is now, asked of the Hub; offline, of the cache.

    Raises ProviderError.
    """
    if name.is_commit:
        return name
    if is_offline():
        if (commit := cached_commit(name, repo_type)) is None:
            raise _not_cached(name)
        return HubName(name.repo, commit)

    def ask(hub: Any) -> str:
        api = hub.HfApi(endpoint=endpoint())
        return str(api.repo_info(name.repo, repo_type=repo_type, revision=name.revision).sha)

    try:
        commit = _asked(name, repo_type, ask)
    except _UnreachableError as error:
        cached = cached_commit(name, repo_type)
        if cached is None:
            raise error.told from None
        return HubName(name.repo, cached)
    _remember(name, repo_type, commit)
    return HubName(name.repo, commit)


def _remember(name: HubName, repo_type: RepoType, commit: str) -> None:
    """In the cache, as the library does when it fetches a branch: offline the name is known by it."""
    ref = _ref(name, repo_type)
    with contextlib.suppress(OSError):  # a cache that can only be read
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}.new")
        new.write_text(commit, encoding="utf-8")
        new.replace(ref)


def cached_commit(name: HubName, repo_type: RepoType = "model") -> str | None:
    """The commit that the cache has for the revision, without a call; None: none."""
    if name.is_commit:
        return name.revision
    try:
        commit = _ref(name, repo_type).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return commit if is_commit(commit) else None


def cached_folder(name: HubName, repo_type: RepoType = "model") -> Path | None:
    """Where the cache has its files, as far as it has them; no call."""
    commit = cached_commit(name, repo_type)
    folder = None if commit is None else _repo_cache(name, repo_type) / "snapshots" / commit
    return folder if folder is not None and folder.is_dir() else None


def model_snapshot(name: HubName, *, tokenizer_only: bool = False) -> Path:
    """A folder with the model's files; fetched where the cache lacks them. Raises ProviderError."""
    files = ("config.json", *TOKENIZER_FILES) if tokenizer_only else MODEL_FILES

    def fetch(hub: Any) -> str:
        return str(
            hub.snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=list(files),
                ignore_patterns=list(OTHER_WEIGHTS),
                cache_dir=_cache(),
                endpoint=endpoint(),
                local_files_only=is_offline(),
            )
        )

    try:
        with bars_on_terminals():
            return Path(_asked(name, "model", fetch))
    except _UnreachableError as error:
        raise error.told from None


@contextlib.contextmanager
def bars_on_terminals() -> Iterator[None]:
    """The library's progress bars are for people: a log or a program that reads along gets none."""
    utils = library().utils
    if sys.stderr.isatty() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def offline_problem(name: HubName) -> ProviderError | None:
    """What can be said without a call: offline, and the cache lacks it; None: nothing is known against it."""
    return _not_cached(name) if is_offline() and cached_folder(name) is None else None


def _not_cached(name: HubName) -> ProviderError:
    return ProviderError(f"{name} is not in the cache, and HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE, to fetch it")


def fetched_note(name: HubName) -> str | None:
    """For a plan: that it will be fetched; None: the cache has it."""
    return None if cached_folder(name) is not None else f"{name} is fetched from the Hub when the run starts"


class _UnreachableError(Exception):
    """The Hub was not reached; `told` is the error to raise where the cache doesn't help."""

    def __init__(self, told: ProviderError) -> None:
        super().__init__(str(told))
        self.told = told


def _asked(name: HubName, repo_type: RepoType, question: Callable[[Any], T]) -> T:
    hub = library()
    from huggingface_hub import errors

    page = page_of(name.repo, repo_type)
    try:
        return question(hub)
    except errors.GatedRepoError:
        raise ProviderError(
            f"{name}: the {repo_type} is gated, and your account may not read it (yet)",
            f"accept its terms on {page}, and put your token into HF_TOKEN (or run `hf auth login`)",
        ) from None
    except errors.RevisionNotFoundError:
        raise ProviderError(
            f"{name}: the {repo_type} has no revision {name.revision}", f"choose a branch, tag or commit of {page}"
        ) from None
    except errors.RepositoryNotFoundError:
        raise ProviderError(
            f"{name}: the Hub has no such {repo_type}, or it is private, and no folder here is called so",
            "correct the name; for a private one put a token into HF_TOKEN (or run `hf auth login`)",
        ) from None
    except (errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) as error:
        offline = is_offline()
        why = "HF_HUB_OFFLINE is set" if offline else f"the Hub was not reached ({first_line(error)})"
        fix = "unset HF_HUB_OFFLINE, to fetch it" if offline else "see that you are online, and run again: it goes on"
        raise _UnreachableError(ProviderError(f"{name} is not whole in the cache, and {why}", fix)) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        fix = "put a valid token into HF_TOKEN" if status in (401, 403) else "try again later: what was fetched is kept"
        raise ProviderError(f"{name}: the Hub answered {status} ({first_line(error)})", fix) from error
    except OSError as error:
        raise ProviderError(
            f"{name}: can't be kept in {_cache()} ({first_line(error)})",
            "free space, or set HF_HOME to another folder",
        ) from error
    except Exception as error:
        if not is_transport_error(error):
            raise
        told = ProviderError(
            f"{name}: the Hub was not reached ({first_line(error)})",
            "see that you are online, and run again: it goes on",
        )
        raise _UnreachableError(told) from error


def is_transport_error(error: BaseException) -> bool:
    """The library's transport has changed its name between versions (httpx, httpx2)."""
    return type(error).__module__.startswith("httpx")


def page_of(repo: str, repo_type: RepoType) -> str:
    """A repository's address."""
    return f"{endpoint() or 'https://huggingface.co'}/{'datasets/' if repo_type == 'dataset' else ''}{repo}"


def library() -> Any:
    """huggingface_hub. Raises ProviderError where it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants  # the package's own lazy names lack these two
        import huggingface_hub.utils
    except ImportError:
        raise ProviderError("names of the Hugging Face Hub need the package huggingface_hub", INSTALL) from None
    return huggingface_hub


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def endpoint() -> str | None:
    """Read now: the library reads it when it is imported, which may be before a ``.env`` file was."""
    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or None


def is_offline() -> bool:
    return bool(library().constants.is_offline_mode()) or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1", "ON", "YES", "TRUE",
    )  # fmt: skip


def _cache() -> Path:
    """By the variables as they are now: the store's ``cache_root`` sets HF_HOME after the library is imported."""
    own, home = os.environ.get("HF_HUB_CACHE"), os.environ.get("HF_HOME")
    return Path(own or (f"{home}/hub" if home else library().constants.HF_HUB_CACHE)).expanduser()


def _ref(name: HubName, repo_type: RepoType) -> Path:
    return _repo_cache(name, repo_type) / "refs" / (name.revision or "main")


def _repo_cache(name: HubName, repo_type: RepoType) -> Path:
    return _cache() / f"{repo_type}s--{name.repo.replace('/', '--')}"
