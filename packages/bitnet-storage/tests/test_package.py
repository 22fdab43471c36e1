"""What the package promises as a whole: its public names, its plugin, and that importing it is light."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import attrs
import pluggy
import pytest

import bitnet_storage
from bitnet_storage import hookspecs, plugin
from bitnet_storage.config import LocalStoreConfig, S3StoreConfig
from bitnet_storage.contract import DurableStore, StorageError, StorePlugin


def test_every_public_name_is_there() -> None:
    for name in bitnet_storage.__all__:
        assert getattr(bitnet_storage, name) is not None
    assert dir(bitnet_storage) == sorted(bitnet_storage.__all__)
    with pytest.raises(AttributeError, match="module 'bitnet_storage' has no attribute 'nothing'"):
        bitnet_storage.nothing  # noqa: B018


def test_every_lazy_function_is_there() -> None:
    lazy = [each.open.args[0] for each in plugin.bitnet_stores() if isinstance(each.open, partial)]
    assert len(lazy) == 2
    for each in lazy:
        assert callable(resolve_name(each.args[0]))


def test_the_local_store_comes_through_the_hook(tmp_path: Path) -> None:
    manager = pluggy.PluginManager("bitnet")
    manager.add_hookspecs(hookspecs)
    manager.register(plugin)
    manager.check_pending()
    (records,) = manager.hook.bitnet_stores()
    assert all(isinstance(record, StorePlugin) for record in records)
    assert [record.name for record in records] == ["local", "s3", "gdrive", "fsspec"]
    record = records[0]
    assert (record.options, record.api_version) == (LocalStoreConfig, hookspecs.API_VERSION)
    local = record.open(LocalStoreConfig(root=tmp_path))
    assert local.run_folder("first").is_dir()
    assert not isinstance(local, DurableStore), "the working folder is the durable place: nothing to copy"


def test_local_with_another_working_place_copies(tmp_path: Path) -> None:
    store = plugin._open_local(LocalStoreConfig(root=tmp_path / "drive", work=tmp_path / "fast", push_every=5))
    assert isinstance(store, DurableStore)
    assert store.push_every == 5
    (store.run_folder("first") / "a").write_bytes(b"x")
    store.push("first")
    assert store.run_folder("first") == tmp_path / "fast/first"
    assert list((tmp_path / "drive/first/files").iterdir())


def test_what_would_have_no_effect_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"store\.keep_checkpoints: counts only with store\.work"):
        plugin._open_local(LocalStoreConfig(root=tmp_path, keep_checkpoints=2))


@pytest.mark.parametrize("work", [".", "inside", "../"])
def test_root_and_working_place_do_not_lie_in_each_other(tmp_path: Path, work: str) -> None:
    with pytest.raises(StorageError, match="lie in each other"):
        plugin._open_local(LocalStoreConfig(root=tmp_path / "root", work=tmp_path / "root" / work))


def test_settings_have_help_and_paths_are_marked() -> None:
    paths = {}
    for record in plugin.bitnet_stores():
        fields = attrs.fields(record.options)
        assert all(field.metadata["help"] for field in fields)
        paths[record.name] = {field.name for field in fields if field.metadata["path"]}
    both = {"cache_root", "work"}
    assert paths == {"local": both | {"root"}, "s3": both, "gdrive": both | {"root", "mount_point"}, "fsspec": both}


@pytest.mark.parametrize("name", ["s3", "gdrive", "fsspec"])
def test_no_option_takes_a_secret_itself(name: str) -> None:
    (record,) = [record for record in plugin.bitnet_stores() if record.name == name]
    suspicious = ("key", "secret", "token", "password", "account")
    names = [field.name for field in attrs.fields(record.options) if any(word in field.name for word in suspicious)]
    assert all(each.endswith("_env") or each == "kms_key_id" for each in names)


def test_numbers_and_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be above 0: 0"):
        LocalStoreConfig(root=tmp_path, push_every=0)
    with pytest.raises(ValueError, match="must be the name of an environment variable, not its value"):
        S3StoreConfig(bucket="b", work=tmp_path, secret_key_env="fake/secret+value=")


def test_listing_the_plugin_imports_nothing_heavy() -> None:
    code = (
        "import sys, bitnet_storage, bitnet_storage.plugin as p; p.bitnet_stores();"
        "heavy = ('torch', 'numpy', 'fsspec', 'obstore', 'boto3', 'google.auth', 'bitnet_storage.sync.synced_store',"
        " 'bitnet_core', 'bitnet_cli', 'bitnet_storage.backends.local');"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
