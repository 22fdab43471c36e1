"""notebooks/colab.ipynb, executed cell by cell in a real kernel, with stand-ins for what only Colab has.

Stand-ins: the module ``google.colab``; `git` and `pip`, which write down how they were called (the packages are
installed here already); ``/content``, which is a temporary folder; and a teacher of a few thousand weights.
"""

import importlib.metadata
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins.load import load_plugins
from tiny_run import make_teacher

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks/colab.ipynb"

COLAB = {
    "__init__.py": "",
    "drive.py": """
from pathlib import Path

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    Path(mountpoint, "MyDrive").mkdir(parents=True, exist_ok=True)
    print("Mounted at", mountpoint)

def flush_and_unmount(timeout_ms=86400000):
    print("unmounted")
""",
    "files.py": """
def download(filename):
    with open(filename, "rb") as file:
        print("download:", filename, file.read(4))
""",
    "userdata.py": """
class SecretNotFoundError(Exception):
    pass

def get(key):
    if key != "SOME_API_KEY":
        raise SecretNotFoundError(key)
    return "not-a-real-key"
""",
}
TOOLS = {
    "git": 'echo "git $*" >> {log}; [ "$1" = clone ] && for last; do :; done && ln -s {root} "$last"\n',
    "pip": 'echo "pip $*" >> {log}\n',
}
TINY = """
manifest_version = 1
extends = "{root}/manifests/colab.toml"
[store]
mount_point = "{content}/drive"
root = "{content}/drive/MyDrive/bitnet_poc/runs"
work = "{content}/runs"
[teacher]
model = "{teacher}"
dtype = "fp32"
[baseline]
max_prompts = 2
max_new_tokens = 8
[collect]
max_prompts = 6
max_texts = 18
max_new_tokens = 8
samples_per_prompt = 1
max_text_tokens = 64
[project]
holdout_fraction = 0.2
[student]
layers = [0, 1]
[train]
steps = 4
batch_size = 4
precision = "auto"
warmup_steps = 1
validate_every = 2
validation_documents = 2
flip_fraction = 0.5
[evaluate]
max_prompts = 2
max_new_tokens = 8
bootstrap_samples = 100
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``/content`` is here, with a tiny manifest in it; stand-ins lie beside it."""
    folder = tmp_path_factory.mktemp("colab")
    for name, text in COLAB.items():
        path = folder / "site/google/colab" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "bin").mkdir()
    for name, text in TOOLS.items():
        tool = folder / "bin" / name
        tool.write_text("#!/bin/sh\n" + text.format(log=folder / "calls.log", root=ROOT))
        tool.chmod(0o755)
    content = folder / "content"
    content.mkdir()
    teacher = make_teacher(folder / "teacher")
    (folder / "tiny.toml").write_text(TINY.format(root=ROOT, content=content, teacher=teacher))
    return content


def execute(content: Path, changes: str = "") -> dict[str, str]:
    """Run every cell; returns what each printed and showed, by the cell's id. A cell that raises fails the test."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("/content", str(content))
        if "parameters" in cell.metadata.get("tags", ()):
            assert cell.source.count('REPOSITORY = ""') == cell.source.count('KEY = ""') == 1
            cell.source = cell.source.replace('REPOSITORY = ""', 'REPOSITORY = "https://example.org/bitnet-kde"')
            cell.source = cell.source.replace('KEY = ""', 'KEY = "SOME_API_KEY"')
            cell.source = cell.source.replace('CHANGES = ""', f"CHANGES = {changes!r}")
            cell.source = cell.source.replace("manifests/colab.toml", str(content.parent / "tiny.toml"))
    environment = dict(os.environ)
    for name in ("DRIVE_ROOT", "RUNS_DIR"):
        environment.pop(name, None)
    client = NotebookClient(notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": content}})
    client.execute(
        env=environment
        | {
            "PATH": os.pathsep.join(
                [str(content.parent / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
            ),
            "PYTHONPATH": str(content.parent / "site"),
            "IPYTHONDIR": str(content.parent / "ipython"),
            "JUPYTER_RUNTIME_DIR": str(content.parent / "jupyter"),
        }
    )
    return {cell.id: "".join(map(shown, cell.outputs)) for cell in notebook.cells if cell.cell_type == "code"}


def shown(output: Any) -> str:
    """The text of a cell's output without its colours, or the HTML that it displays."""
    data = output.get("data", {})
    return re.sub(r"\x1b\[[0-9;]*m", "", output.get("text") or data.get("text/html") or data.get("text/plain") or "")


@pytest.mark.slow
def test_the_notebook_runs_and_goes_on_after_a_disconnect(content: Path) -> None:
    first = execute(content)
    calls = (content.parent / "calls.log").read_text()
    assert f"git clone -q --depth 1 https://example.org/bitnet-kde {content}/bitnet-kde" in calls
    for package in ("bitnet-core[gguf]", "bitnet-providers[local]", "bitnet-storage", "bitnet-cli"):
        assert f"./packages/{package}" in calls
    assert f"pip install -q -c {content}/keep.txt " in calls
    assert (content / "keep.txt").read_text() == f"torch=={importlib.metadata.version('torch')}\n"
    assert "not-a-real-key" not in "".join(first.values())
    assert "a run can start" in first["doctor"], first["doctor"]
    assert "durable: " in first["run"], first["run"]
    assert "<h1" in first["report"]
    assert "<svg" in first["report"], "the plots are inside: Colab can't reach files"
    assert f"download: {content}/runs/colab/exports/student-tq2_0.gguf b'GGUF'" in first["download"]
    assert f"download: {content}/runs/colab/report.html b'<!do" in first["download"].lower()
    assert first["talk"].strip(), "a student of four steps says something"
    assert "rror" not in first["talk"], first["talk"]
    assert first["end"] == "unmounted\n"

    # The machine is gone; only the drive is left.
    for path in content.iterdir():
        if path.name != "drive":
            path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)
    second = execute(content)
    assert "pulled " in second["run"], second["run"]
    lines = [line for line in second["run"].splitlines() if line.startswith(("collect", "train", "evaluate", "export"))]
    assert lines
    assert all("skipped: done" in line for line in lines), second["run"]
    assert f"download: {content}/runs/colab/exports/student-tq2_0.gguf b'GGUF'" in second["download"]


@pytest.mark.slow
def test_a_run_that_stops_is_told_and_no_other_report_is_shown(content: Path) -> None:
    with pytest.raises(CellExecutionError, match="the run is not finished"):
        execute(content, changes="--set train.steps=none")


def test_the_notebook_is_saved_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None)


def test_the_manifest_follows_the_variables_of_the_drive() -> None:
    def root(environment: dict[str, str]) -> Path:
        manifest = load_manifest(ROOT / "manifests/colab.toml", (), load_plugins({}), environment)
        assert manifest.train is not None
        assert manifest.train.precision == "fp16", "a T4 has no fast bf16"
        found: Path = manifest.store.options.root
        return found

    assert root({}) == Path("/content/drive/MyDrive/bitnet_poc/runs")
    assert root({"DRIVE_ROOT": "/content/drive/MyDrive/mine", "RUNS_DIR": "kept"}) == Path(
        "/content/drive/MyDrive/mine/kept"
    )
