"""`bitnet traces`: check, count, show, import and merge traces. The work is the libraries'; this prints."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bitnet_cli.commands import completion
from bitnet_cli.errors import library_errors
from bitnet_cli.wording.hide_secrets import plain_json

if TYPE_CHECKING:
    from bitnet_core.traces.show_position import ShownPosition

WHERE = click.argument(
    "where", metavar="RUN_OR_FOLDER", type=click.Path(path_type=Path), shell_complete=completion.run_folder
)
TOKENIZER = click.option(
    "--tokenizer", metavar="FOLDER", type=click.Path(path_type=Path), help="A folder with the student's tokenizer."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
BAR = 40


@click.group()
def traces() -> None:
    """Check, count, show, import and merge KD traces.

    They hold what a teacher said, and how likely it found it, in the student's tokens (docs/kd-shard.md).

    \b
    Examples:
      bitnet traces validate runs/quickstart
      bitnet traces stats runs/quickstart
      bitnet traces show runs/quickstart 100 --checkpoint runs/quickstart/checkpoints/step_120
      bitnet traces import dump.jsonl --out raw
      bitnet traces merge machine-1 machine-2 --out runs/all/raw
    """


@traces.command(short_help="Check every value of raw and KD shards.")
@WHERE
@TOKENIZER
@AS_JSON
def validate(where: Path, tokenizer: Path | None, as_json: bool) -> None:
    """Read every value of raw and KD shards; exit with 2 where something is wrong, naming file, row group and fix.

    \b
    Examples:
      bitnet traces validate runs/quickstart
      bitnet traces validate my-shards --tokenizer my-tokenizer
    """
    with library_errors():
        import attrs

        from bitnet_core.projection.validate_raw import raw_files, validate_raw
        from bitnet_core.traces.schema import has_traces
        from bitnet_core.traces.validate_shards import validate_traces

        raw = raw_files(where)
        found = {"raw": validate_raw(raw)} if raw else {}
        if not raw or has_traces(where):
            found["kd"] = validate_traces(where, tokenizer)
        if as_json:
            of_kd = attrs.asdict(found["kd"]) if "kd" in found else {}
            click.echo(json.dumps(of_kd | ({"raw": attrs.asdict(found["raw"])} if raw else {}), indent=2))
        else:
            for name, result in found.items():
                for problem in result.problems:
                    click.echo(f"error: {problem}", err=True)
                count = len(result.problems)
                told = "no problem" if not count else "1 problem" if count == 1 else f"{count} problems"
                what = {"raw": "raw shards, {:,} completions", "kd": "shards, {:,} positions"}[name]
                click.echo(f"{result.files} {what.format(result.rows)}: {told}")
    sys.exit(2 if any(result.problems for result in found.values()) else 0)


@traces.command(short_help="Count what is in raw and KD shards: tokens, coverage, bytes.")
@WHERE
@AS_JSON
def stats(where: Path, as_json: bool) -> None:
    """Count what is in raw and KD shards: answers, tokens, how much of the teacher's probability is kept, bytes.

    \b
    Example:
      bitnet traces stats runs/quickstart
    """
    with library_errors():
        from bitnet_core.projection.validate_raw import raw_files, raw_stats
        from bitnet_core.traces.schema import has_traces
        from bitnet_core.traces.stats import trace_stats

        raw = raw_files(where)
        of_raw = raw_stats(raw) if raw else None
        of_kd = trace_stats(where) if not raw or has_traces(where) else None
    if as_json:
        click.echo(json.dumps((of_kd or {}) | ({"raw": of_raw} if of_raw else {}), indent=2))
    else:
        click.echo("\n\n".join([*([raw_text(of_raw)] if of_raw else ()), *([stats_text(of_kd)] if of_kd else ())]))


@traces.command(short_help="Show one KD position: its text and the teacher's candidates.")
@WHERE
@click.argument("number", metavar="N", type=int)
@click.option(
    "--checkpoint",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Show this student's probabilities beside the teacher's.",
)
@TOKENIZER
@AS_JSON
def show(where: Path, number: int, checkpoint: Path | None, tokenizer: Path | None, as_json: bool) -> None:
    """Show the N-th position (from 0) that has a teacher's probabilities: the text before it, and the candidates.

    \b
    Examples:
      bitnet traces show runs/quickstart 100
      bitnet traces show runs/quickstart 100 --checkpoint runs/quickstart/checkpoints/step_120
    """
    with library_errors():
        import attrs

        from bitnet_core.traces.show_position import show_position

        position = show_position(where, number, checkpoint, tokenizer)
        record = attrs.asdict(position)
    click.echo(plain_json(record, indent=2) if as_json else position_text(position))


@traces.command("import", short_help="Turn a JSONL dump of chat completions into raw shards.")
@click.argument("dump", metavar="DUMP.jsonl", type=click.Path(path_type=Path))
@click.option(
    "--out", required=True, metavar="RAW_FOLDER", type=click.Path(path_type=Path), help="Where the raw shards go."
)
@AS_JSON
def import_(dump: Path, out: Path, as_json: bool) -> None:
    """Turn a dump of OpenAI-shaped chat completions (JSONL) into raw shards, which the project stage reads.

    \b
    Example:
      bitnet traces import dump.jsonl --out raw
    """
    with library_errors():
        from bitnet_providers.raw.import_chats import import_chat_dump

        summary = import_chat_dump(dump, out)
    click.echo(json.dumps(summary, indent=2) if as_json else import_text(summary, out))


@traces.command(short_help="Put the traces of several machines or folders into one folder.")
@click.argument("folders", metavar="RUN_OR_FOLDER...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Where the shards go.")
@click.option(
    "--kind",
    type=click.Choice(["raw", "kd"]),
    help="Raw shards or KD shards; without it raw shards, and KD shards where no folder has raw ones.",
)
@AS_JSON
def merge(folders: tuple[Path, ...], out: Path, kind: str | None, as_json: bool) -> None:
    """Put raw shards that one manifest collected, or KD shards of one projection, into one folder, each once.

    Folders of two manifests or two projections are refused. The folders stay as they are.

    \b
    Examples:
      bitnet traces merge machine-1 machine-2 machine-3 --out runs/all/raw
      bitnet traces merge part-1 part-2 --out runs/all/data --kind kd
    """
    with library_errors():
        from bitnet_core.projection.merge_kd_shards import merge_kd
        from bitnet_core.projection.validate_raw import raw_files
        from bitnet_providers.raw.merge_raw import merge_raw

        is_raw = kind == "raw" or (kind is None and any(raw_files(folder) for folder in folders))
        summary = merge_raw(folders, out) if is_raw else merge_kd(folders, out)
    click.echo(json.dumps(summary, indent=2) if as_json else merge_text(summary, out))


def raw_text(stats: dict[str, Any]) -> str:
    """Lines of ``name  value`` of what the teacher said."""

    def shown(value: Any) -> str:
        return "-" if value is None else value if isinstance(value, str) else f"{value:,.4f}".removesuffix(".0000")

    lines = ["what the teacher said (raw shards)"]
    for name, value in stats.items():
        for inner, each in value.items() if isinstance(value, dict) else [("", value)]:
            label = f"{name} {inner}".strip().replace("_", " ")
            lines.append(f"{label:<34}{shown(each):>14}")
    return "\n".join(lines)


def stats_text(stats: dict[str, Any]) -> str:
    """Lines of ``name  value`` for all and for each split, then the histogram of P(other)."""
    columns = {"all": stats, **stats["splits"]}
    target = ", ".join(f"{name} {value}" for name, value in stats["target"].items() if name != "kind")
    lines = [f"targets: {stats['target']['kind']}{f' ({target})' if target else ''}"] if target else []
    lines += ["".join([f"{'':<34}", *(f"{name:>14}" for name in columns)])]
    for label, name, form in (
        ("documents", "documents", "{:,}"),
        ("tokens", "rows", "{:,}"),
        ("response tokens", "response_positions", "{:,}"),
        ("KD positions", "kd_positions", "{:,}"),
        ("coverage (KD of response)", "kd_coverage", "{:.2%}"),
        ("mean mass of the candidates", "mean_topk_mass", "{:.4f}"),
        ("mean P(other)", "mean_other_mass", "{:.4f}"),
        ("structure tokens of response", "struct_share", "{:.2%}"),
        ("text bytes per response token", "bytes_per_position", "{:.2f}"),
    ):
        values = [column[name] for column in columns.values()]
        lines.append(f"{label:<34}" + "".join(f"{'-' if v is None else form.format(v):>14}" for v in values))
    size = stats["file_bytes_per_kd_position"]
    per_position = "" if size is None else f" ({size:.1f} per KD position)"
    lines.append(f"{'file bytes':<34}{stats['file_bytes']:>14,}{per_position}")
    if stats["projection"] is not None:
        for name, value in stats["projection"].items():
            lines.append(f"{name.replace('_', ' '):<34}{value:>14,}")
    if stats["mean_candidates"] is not None:
        lines.append(f"{'candidates of a KD position':<34}{stats['mean_candidates']:>14.1f}")
    if stats["other_mass_histogram"] is None:
        return "\n".join(lines)
    lines += ["", "P(other) of the KD positions"]
    edges, counts = stats["other_mass_histogram"]["edges"], stats["other_mass_histogram"]["counts"]
    total = max(1, sum(counts))
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        bar = "█" * round(BAR * count / max(1, *counts))
        lines.append(f"  {low:>6g} to {high:<6g} {count:>9,} {count / total:>6.1%}  {bar}".rstrip())
    return "\n".join(lines)


def position_text(shown: "ShownPosition") -> str:
    """The context, the token, and a table of candidates by falling probability."""
    lines = [
        f"{shown.file}, KD position {shown.number}: prompt {shown.prompt_idx}, sample {shown.sample_idx}, "
        f"step {shown.step_idx}, split {shown.split}{', structure' if shown.is_struct_token else ''}",
        f"after   {shown.context!r}",
        f"stands  {shown.token!r} (id {shown.token_id})",
        "",
        f"    {'id':>7}  {'teacher':>8}" + (f"  {'student':>8}" if shown.kl is not None else "") + "  text",
    ]

    def row(mark: str, token_id: str, teacher: float | None, student: float | None, text: str) -> str:
        theirs = f"{'-':>8}" if teacher is None else f"{teacher:8.4f}"
        ours = f"  {student:8.4f}" if student is not None else ""
        return f"  {mark} {token_id:>7}  {theirs}{ours}  {text}"

    lines += [
        row("*" if each.is_sampled else " ", str(each.token_id), each.teacher, each.student, repr(each.text))
        for each in shown.candidates
    ]
    lines.append(row(" ", "other", shown.other, shown.student_other, ""))
    drawn = shown.target == "sampled"
    if not any(each.is_sampled for each in shown.candidates):
        where = "not drawn" if drawn else "in other"
        lines.append(row("*", str(shown.token_id), None, shown.student_token, f"{shown.token!r} ({where})"))
    if drawn:
        lines += ["", "sampled: weights of the draws, which estimate the teacher's probabilities"]
    if shown.kl is not None:
        over = "estimated from the draws" if drawn else "over these and other"
        lines += ["", f"KL(teacher, student) {over}: {shown.kl:.4f} nats"]
    return "\n".join(line.rstrip() for line in lines)


SHOWN = 10
"""Skipped lines that are printed."""


def import_text(summary: dict[str, Any], out: Path) -> str:
    """What came in, and what could not be taken as it was."""
    lines = [f"{summary['completions']:,} completions, {summary['tokens']:,} tokens, K = {summary['top_k']}: {out}"]
    lines += [f"  {name.replace('_', ' ')}: {count:,}" for name, count in summary["counted"].items() if count]
    for each in summary["skipped"][:SHOWN]:
        fix = f"  → {each['fix']}" if each["fix"] else ""
        lines.append(f"  skipped line {each['line']}: {each['why']}{fix}")
    if len(summary["skipped"]) > SHOWN:
        lines.append("  --json lists more of them")
    return "\n".join(lines)


def merge_text(summary: dict[str, Any], out: Path) -> str:
    """What came together, and what stood twice."""
    told = {name: count for name, count in summary.items() if name not in ("kind", "folders", "shards") and count}
    head = f"{summary['folders']} folders, {summary['shards']} {summary['kind']} shards: {out}"
    return "\n".join([head, *(f"  {name.replace('_', ' ')}: {count:,}" for name, count in told.items())])
