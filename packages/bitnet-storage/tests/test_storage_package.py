"""What the package promises as a whole: its public names, its plugin, and that importing it is light."""

import subprocess
import sys
from pathlib import Path

import attrs
import pluggy
import pytest

import bitnet_storage
from bitnet_storage import hookspecs, plugin
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import StorePlugin


def test_every_public_name_is_there() -> None:
    for name in bitnet_storage.__all__:
        assert getattr(bitnet_storage, name) is not None
    assert dir(bitnet_storage) == bitnet_storage.__all__
    with pytest.raises(AttributeError, match="module 'bitnet_storage' has no attribute 'nothing'"):
        bitnet_storage.nothing  # noqa: B018


def test_the_local_store_comes_through_the_hook(tmp_path: Path) -> None:
    manager = pluggy.PluginManager("bitnet")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    (records,) = manager.hook.bitnet_stores()
    (record,) = records
    assert isinstance(record, StorePlugin)
    assert (record.name, record.options, record.api_version) == ("local", LocalStoreConfig, hookspecs.API_VERSION)
    assert record.open(LocalStoreConfig(root=tmp_path)).run_folder("first").is_dir()


def test_settings_have_help_and_paths_are_marked() -> None:
    fields = attrs.fields(LocalStoreConfig)
    assert all(field.metadata["help"] for field in fields)
    assert [field.name for field in fields if field.metadata["path"]] == ["root", "cache_root"]


def test_listing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, bitnet_storage, bitnet_storage.plugin as p; p.bitnet_stores();"
        "heavy = ('torch', 'numpy', 'fsspec', 'bitnet_core', 'bitnet_cli', 'bitnet_storage.local');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
