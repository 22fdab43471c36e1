"""When each stage was done, on what machine, with which versions, and what it left."""

from collections.abc import Iterator
from urllib.parse import quote

from bitnet_cli.report.blocks import Block, Heading, Link, Table, Text
from bitnet_cli.report.number_format import stage_times
from bitnet_cli.report.read_run import RunRecord


def provenance_blocks(run: RunRecord) -> Iterator[Block]:
    yield Heading("Provenance")
    if run.done:
        header = ("stage", "finished (UTC)", "seconds", "result")
        yield Table(header, stage_times(run.done.values()), numeric=False)
    else:
        yield Text("No stage has finished yet.")
    environment, git = run.environment, run.environment.get("git") or {}
    torch = environment.get("torch") or {}
    packages = environment.get("packages") or {}
    facts = (
        ("commit", f"{git['commit']}{', with changes' if git.get('dirty') else ''}" if git else "not in a repository"),
        ("uv.lock sha256", environment.get("uv_lock_sha256")),
        ("machine", f"{environment.get('cpu')}, {environment.get('cpu_count')} cores" if environment else None),
        ("platform", environment.get("platform")),
        ("python", environment.get("python")),
        ("device", f"{torch.get('device')}, {torch.get('threads')} threads" if torch else None),
        (
            "packages",
            ", ".join(f"{name} {packages[name]}" for name in ("torch", "transformers", "pyarrow") if name in packages),
        ),
    )
    rows = tuple((name, str(value)) for name, value in facts if value)
    if environment:
        yield Table(("what", "value"), rows, numeric=False)
    else:
        yield Text("environment.json: not there yet.")
    if run.files:
        links = [part for path in sorted(run.files) for part in (", ", Link(path, quote(path)))]
        yield Text(("Files of this run: ", *links[1:], "."))
