"""What a reader wants to know first: teacher and student, their sizes, tokens, hardware, time, date."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from bitnet_cli.report.blocks import Block, Facts, Link, Words
from bitnet_cli.report.number_format import bytes_text, count, duration, number
from bitnet_cli.report.read_run import RunRecord
from bitnet_providers.hub.names import hub_name


def fact_blocks(run: RunRecord) -> Iterator[Block]:
    """Only what is known; nothing of an empty folder."""
    rows: tuple[tuple[str, Words | None], ...] = (
        ("Teacher", _teacher(run)),
        ("Student", _student(run)),
        ("Size", _size(run)),
        ("Tokens", _tokens(run)),
        ("Hardware", _hardware(run)),
        ("Time", _time(run)),
        ("Date", _date(run)),
        ("Software", _software(run)),
    )
    if known := tuple((name, words) for name, words in rows if words):
        yield Facts(known)


def file_link(run: RunRecord, path: str, text: str = "") -> str | Link:
    """A link to a file of the run folder; its name alone where the file isn't there."""
    return Link(text or path, quote(path)) if path in run.files else text or path


def model_link(name: str) -> str | Link:
    """A model of the Hub that is pinned to a commit leads there; a path, or a name at some API, is text."""
    found = hub_name(name)
    if found is None or not found.is_commit:
        return name
    return Link(f"{found.repo}@{str(found.revision)[:7]}", f"https://huggingface.co/{found.repo}/tree/{found.revision}")


def teacher_name(run: RunRecord) -> str:
    """As the manifest pins it, or as the baseline recorded it; empty where neither knows."""
    said = run.setting("teacher", "model") or (run.baseline.get("teacher") or {}).get("model")
    return " ".join(str(said).split()) if said else ""


def _teacher(run: RunRecord) -> Words | None:
    teacher, kind = run.baseline.get("teacher") or {}, run.setting("teacher", "kind")
    name = teacher_name(run)
    details = [
        f"{count(teacher['parameters'])} parameters" if teacher.get("parameters") else "",
        f"{teacher['dtype']} on {teacher.get('device', '?')}" if teacher.get("dtype") else "",
        f"by {kind}" if kind and kind != "local" else "",
    ]
    told = ", ".join(filter(None, details))
    return (model_link(name), f": {told}" if told else "") if name else None


def _student(run: RunRecord) -> Words | None:
    config = run.student
    parameters = f"{count(run.student_parameters)} parameters" if run.student_parameters else ""
    shape = ""
    if config.get("num_hidden_layers") and config.get("hidden_size"):
        shape = f"{config['num_hidden_layers']} layers of width {number(config['hidden_size'])}"
    weights = {True: "ternary weights", False: "full-precision weights"}.get(config.get("quantise_weights", ""), "")
    bits = run.evaluation.get("activation_bits") or config.get("activation_bits")
    activations = f"A{bits} activations" if bits and weights else ""
    said = ", ".join(filter(None, (parameters, shape, weights, activations, _start(run))))
    return said or None


def _start(run: RunRecord) -> str:
    init_from = str(run.setting("student", "init_from") or "")
    if run.calibration.get("layers"):
        return "calibrated start" + (" from the teacher" if init_from == "teacher" else "")
    return f"started from {'the teacher' if init_from == 'teacher' else init_from}" if init_from else ""


def _size(run: RunRecord) -> Words | None:
    report = run.evaluation
    if not report.get("memory_bytes"):
        return None
    text = f"{bytes_text(report['memory_bytes'])} of weights"
    if report.get("teacher_memory_bytes"):
        text += f", the teacher's {bytes_text(report['teacher_memory_bytes'])}"
    exported = run.done["export"].summary.get("exports") if "export" in run.done else None
    files = [
        (name, entry) for name, entry in (exported or {}).items() if isinstance(entry, dict) and name.endswith(".gguf")
    ]
    if not files:
        return text
    name, entry = min(files, key=lambda item: item[1].get("bytes") or 0)
    return (f"{text}; ", file_link(run, f"exports/{name}", name), f" {bytes_text(entry.get('bytes'))}")


def _tokens(run: RunRecord) -> Words | None:
    """Trained on, then what they were drawn from."""
    parts = []
    if run.metrics:
        last = run.metrics[-1]
        parts.append(f"{number(last.get('seen_tokens'))} seen in {number(last['step'])} steps")
    project = run.done["project"].summary if "project" in run.done else {}
    splits = project.get("splits")
    train = splits.get("train") if isinstance(splits, dict) else None
    if isinstance(train, dict) and train.get("response_positions") is not None:
        known = f"{number(train['response_positions'])} of the teacher's"
        parts.append(f"{known}, in {number(train.get('documents'))} training documents")
    return "; ".join(parts) or None


def _hardware(run: RunRecord) -> Words | None:
    environment, torch = run.environment, run.environment.get("torch") or {}
    if not environment.get("cpu"):
        return None
    cpu = f"{environment['cpu']}, {environment.get('cpu_count', '?')} cores"
    device = torch.get("device")
    processes = (run.done["train"].summary if "train" in run.done else {}).get("processes")
    several = f"{processes} × " if isinstance(processes, int) and processes > 1 else ""
    return f"{several}{device}; {cpu}" if device and device != "cpu" else cpu


def _time(run: RunRecord) -> Words | None:
    if not run.done:
        return None
    total = duration(sum(done.seconds for done in run.done.values()))
    return f"{total}, of which training {duration(run.done['train'].seconds)}" if "train" in run.done else total


def _date(run: RunRecord) -> Words | None:
    finished: list[str] = [done.finished for done in run.done.values()]
    return f"{max(finished)[:16].replace('T', ' ')} UTC" if finished else None


def _software(run: RunRecord) -> Words | None:
    packages: dict[str, Any] = run.environment.get("packages") or {}
    names = (("BitNet KDE", "bitnet-cli"), ("torch", "torch"), ("transformers", "transformers"))
    said = [f"{label} {packages[name]}" for label, name in names if name in packages]
    if not said:
        return None
    commit = (run.environment.get("git") or {}).get("commit")
    if commit:
        said[0] += f" ({str(commit)[:12]}{', changed' if run.environment['git'].get('dirty') else ''})"
    return ", ".join(said)
