"""The manifest's section that configures bitnet-storage's own store."""

from pathlib import Path

import attrs

from bitnet_storage.settings import setting


@attrs.frozen(kw_only=True)
class LocalStoreConfig:
    """``[store] kind = "local"``: runs live in folders of this machine (a mounted drive counts)."""

    root: Path = setting(help="the folder that holds the runs, one folder each", path=True)
    cache_root: Path | None = setting(
        default=None, help="where Hugging Face and torch keep downloads (none: where they always do)", path=True
    )
