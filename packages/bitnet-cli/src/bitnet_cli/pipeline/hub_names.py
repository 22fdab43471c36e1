"""Names of the Hugging Face Hub in a manifest: each becomes the commit that it stands for, and is fetched once.

A fingerprint then holds the commit, and so does ``manifest.resolved.toml``. A run folder keeps the commit that it began
with: a model that is changed on the Hub changes no run, until the manifest names another revision.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import tomli

from bitnet_cli.errors import UserError, problem_of
from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.names import HubName, hub_name

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_providers.config import DatasetConfig

SECTIONS = ("teacher", "project", "student")


def names_in(manifest: "Manifest") -> Iterator[tuple[str, str, HubName]]:
    """(section, key, name) of each model that the manifest names on the Hub."""
    for section in SECTIONS:
        options = _options(manifest, section)
        for field in () if options is None else attrs.fields(type(options)):
            value = getattr(options, field.name)
            if field.metadata.get("hub") and isinstance(value, str) and (name := hub_name(value)) is not None:
                yield section, field.name, name


def pinned_manifest(manifest: "Manifest", folder: Path | None, *, ask: bool) -> "Manifest":
    """The same manifest with a commit for each name: the run folder's, else the Hub's (`ask`) or the cache's.

    Without `ask` there is no call, and a name may stay as it is. Raises UserError with the setting's name.
    """
    recorded = _recorded(folder)
    for section, key, name in tuple(names_in(manifest)):
        before = hub_name(str(recorded.get(section, {}).get(key, "")))
        pinned = _pinned(f"{section}.{key}", name, before, ask=ask, kind="model")
        manifest = _with_value(manifest, section, key, str(pinned))
    return _with_pinned_dataset(manifest, recorded, ask=ask)


def fetch(manifest: "Manifest", sections: Collection[str], tell: Callable[[str], None]) -> None:
    """Fetch the models that `sections` name, as far as the cache lacks them. Raises UserError."""
    from bitnet_providers.hub.snapshots import fetched_note, model_snapshot

    for section, key, name in names_in(manifest):
        if section not in sections:
            continue
        if fetched_note(name) is not None:
            tell(f"fetching {name} from the Hub")
        try:
            model_snapshot(name, tokenizer_only=section == "project")
        except ProviderError as error:
            raise _within(f"{section}.{key}", error) from error


def unfetched_dataset(manifest: "Manifest") -> str | None:
    """For a plan: that its dataset is on the Hub, and not in the cache; None: it can be read without a call."""
    dataset = None if manifest.collect is None else manifest.collect.dataset
    if dataset is None or dataset.name is None:
        return None
    from bitnet_providers.hub.snapshots import cached_folder

    repo, _, revision = dataset.name.partition(":")[0].partition("@")
    if cached_folder(HubName(repo, revision or dataset.revision), "dataset") is not None:
        return None
    return f"the dataset {repo} is fetched from the Hub when the run starts: what it asks is known then"


def notes(manifest: "Manifest") -> Iterator[str]:
    """For a plan: what the cache lacks."""
    from bitnet_providers.hub.snapshots import fetched_note

    if (dataset := unfetched_dataset(manifest)) is not None:
        yield dataset
    told = dict.fromkeys(fetched_note(name) for _, _, name in names_in(manifest))
    yield from (note for note in told if note is not None)


def _pinned(setting: str, name: HubName, before: HubName | None, *, ask: bool, kind: Any) -> HubName:
    if name.revision is None and before is not None and before.repo == name.repo and before.is_commit:
        return before
    from bitnet_providers.hub.snapshots import cached_commit, pinned

    try:
        if ask:
            return pinned(name, kind)
        return HubName(name.repo, cached_commit(name, kind) or name.revision)
    except ProviderError as error:
        if ask:
            raise _within(setting, error) from error
        return name  # a plan says what else is wrong, and this when the model is wanted


def _with_pinned_dataset(manifest: "Manifest", recorded: Mapping[str, Any], *, ask: bool) -> "Manifest":
    dataset: DatasetConfig | None = None if manifest.collect is None else manifest.collect.dataset
    if manifest.collect is None or dataset is None or dataset.name is None:
        return manifest
    repo, _, split = dataset.name.partition(":")
    name = hub_name(repo)
    if name is None:  # one without an owner, of the Hub's first days
        return manifest
    name = HubName(name.repo, name.revision or dataset.revision)
    then = recorded.get("collect", {}).get("dataset", {})
    then_repo = str(then.get("name", "")).partition(":")[0]
    before = HubName(then_repo, then.get("revision")) if then_repo else None
    revision = _pinned("collect.dataset.name", name, before, ask=ask, kind="dataset").revision
    whole = name.repo + (f":{split}" if split else "")
    dataset = attrs.evolve(dataset, name=whole, revision=revision)
    return attrs.evolve(manifest, collect=attrs.evolve(manifest.collect, dataset=dataset))


def _options(manifest: "Manifest", section: str) -> Any:
    """The section's settings; those of a plugin stand in its `options`."""
    value = getattr(manifest, section, None)
    return getattr(value, "options", value)


def _with_value(manifest: "Manifest", section: str, key: str, value: str) -> "Manifest":
    options = attrs.evolve(_options(manifest, section), **{key: value})
    whole = getattr(manifest, section)
    changed = attrs.evolve(whole, options=options) if hasattr(whole, "options") else options
    return attrs.evolve(manifest, **{section: changed})


def _recorded(folder: Path | None) -> dict[str, Any]:
    """The manifest that the run folder was last worked in with."""
    try:
        return {} if folder is None else tomli.loads((folder / "manifest.resolved.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _within(setting: str, error: ProviderError) -> UserError:
    problem = problem_of(error).within(setting)
    return UserError(problem.why, problem.fix)
