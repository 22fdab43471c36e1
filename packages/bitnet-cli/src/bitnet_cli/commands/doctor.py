"""`bitnet doctor`: what is wrong here, before a run finds out."""

import json
import sys
from pathlib import Path

import attrs
import click

from bitnet_cli.environment import env_file_option, load_environment
from bitnet_cli.errors import UserError


@click.command("doctor", short_help="Check whether a run can start here, and say what to fix.")
@click.argument("manifest", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.option("--set", "overrides", metavar="KEY=VALUE", multiple=True, help="As in bitnet run. May be repeated.")
@env_file_option
def doctor_command(manifest: Path | None, as_json: bool, overrides: tuple[str, ...], env_file: Path | None) -> None:
    """Check versions, device, plugins and disk; with MANIFEST its keys, its store and its plan too.

    Says what to do where something is wrong. No teacher is asked, and no key's value is ever shown. Exit code 0: a run
    can start; 2: it can't.

    \b
    Examples:
      bitnet doctor
      bitnet doctor manifests/colab.toml
      bitnet doctor manifests/colab.toml --set 'train.precision="auto"'
    """
    from bitnet_cli import doctor
    from bitnet_cli.environment import export
    from bitnet_cli.manifest import load_manifest
    from bitnet_cli.plugins import load_plugins

    findings: list[doctor.Finding] = []

    def add(finding: doctor.Finding) -> None:
        findings.append(finding)
        if not as_json:
            doctor.shown(finding, click.echo)

    try:
        environment = load_environment(env_file)
        plugins = load_plugins(environment)
        for finding in doctor.installation(plugins):
            add(finding)
        if manifest is not None:
            loaded = load_manifest(manifest, overrides, plugins, environment)
            export(environment)  # SDKs and the teachers' own checks read it
            for finding in doctor.of_manifest(loaded, plugins, environment):
                add(finding)
    except UserError as error:
        add(doctor.Finding("manifest" if findings else "settings", "problem", str(error)))
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        click.echo(json.dumps({"findings": list(map(attrs.asdict, findings)), "problems": problems}, indent=2))
    else:
        counted = "1 problem" if problems == 1 else f"{problems} problems"
        click.echo(f"{counted}: see the lines marked ✗" if problems else "a run can start")
    sys.exit(2 if problems else 0)
