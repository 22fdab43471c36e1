"""What the benchmarks ask of the teacher, and the question before a paid one is asked for much."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bitnet_cli import run_folder
from bitnet_cli.stages.stage import Context

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins


def answers_asked(manifest: "Manifest", plugins: "Plugins") -> Iterator[tuple[str, int, int]]:
    """(benchmark, answers, tokens of all at most) that are asked of the teacher.

    A file that can't be read is found by the stage's check.
    """
    from bitnet_core.errors import CoreError

    assert manifest.evaluate is not None
    for name, options in manifest.evaluate.options.items():
        plugin = plugins.benchmarks.get(name)
        if plugin is None or plugin.asks is None:
            continue
        try:
            answers, tokens = plugin.asks(options)
        except CoreError:
            continue
        yield name, answers, answers * tokens


def consent_wanted(context: Context) -> str | None:
    """What to ask before benchmarks ask an external teacher for more than a collection might; None: go on."""
    from bitnet_providers.config import CollectConfig
    from bitnet_providers.spending.budget import dollars, price_of, shown
    from bitnet_providers.spending.token_counts import Tokens

    manifest, handle = context.manifest, context.teacher
    if not handle.external or handle.skip_external:
        return None
    asked = list(answers_asked(manifest, context.plugins))
    answers, tokens = sum(each[1] for each in asked), sum(each[2] for each in asked)
    config = manifest.collect or CollectConfig()
    price = price_of(config.prices, getattr(handle.options, "model", None))
    cost = ""
    if price is not None:
        amount = dollars(price, Tokens(0, tokens))
        if amount <= config.confirm_above_dollars:
            return None
        cost, limit = f", {shown(amount)}", f"collect.confirm_above_dollars = {config.confirm_above_dollars:g}"
    elif tokens > config.confirm_above_tokens:
        limit = f"collect.confirm_above_tokens = {config.confirm_above_tokens}"
    else:
        return None
    return (
        f"The benchmarks may take more than {limit}: {answers:,} answers of the teacher, at most {tokens:,} "
        f"tokens{cost}, beside the prompts; what {run_folder.BENCHMARK_JOURNAL} has is not asked again. "
        "Ask the teacher?"
    )
