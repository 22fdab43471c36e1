"""Names of the Hugging Face Hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``, told from paths. Loads and asks nothing."""

import re

import attrs

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FILES = (".gguf", ".toml", ".json", ".safetensors")


@attrs.frozen
class HubName:
    """``ORG/NAME@REVISION``, taken apart."""

    repo: str
    revision: str | None = None

    @property
    def is_commit(self) -> bool:
        """The revision can't change any more."""
        return self.revision is not None and is_commit(self.revision)

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


def hub_name(text: str) -> HubName | None:
    """The name that `text` may be; None: it is a path. A folder that is there wins over a name; ask for it first."""
    if not _NAME.fullmatch(text) or text.endswith(_FILES):
        return None
    repo, _, revision = text.partition("@")
    return HubName(repo, revision or None)


def is_commit(revision: str) -> bool:
    """Whether it can't change any more."""
    return _COMMIT.fullmatch(revision) is not None
