"""Names of the Hugging Face Hub, ``ORG/NAME`` or ``ORG/NAME@REVISION``, told from paths. Loads and asks nothing."""

import re

import attrs

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IN_AN_ADDRESS = re.compile(
    r"(?:huggingface\.co|hf\.co|hf:/?)/(?:datasets/)?([\w.-]+/[\w.-]+)(?:/(?:tree|blob|resolve)/([\w.-]+))?"
)
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


def advice(text: str) -> str:
    """What to write in place of what is neither a path nor a name, where that can be seen in it; else empty."""
    found = _IN_AN_ADDRESS.search(text)
    if found is not None:
        return f'write "{found[1]}"' if found[2] is None else f'write "{found[1]}@{found[2]}"'
    return ""


def is_commit(revision: str) -> bool:
    """Whether it can't change any more."""
    return _COMMIT.fullmatch(revision) is not None
