"""The roofline of `benchmarks.decode`: tokens a second against the bytes that a token must read."""

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], file: Path) -> None:
    """One panel for each number of threads; the line is the memory's limit."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    table = result["table"]
    counts = sorted({row["threads"] for row in table})
    figure, panels = plt.subplots(1, len(counts), figsize=(5 * len(counts), 4), sharey=True, layout="constrained")
    for threads, panel in zip(counts, panels, strict=True):
        rows = [row for row in table if row["threads"] == threads]
        bandwidth = max(row["bandwidth"] for row in rows)
        span = [min(row["bytes_per_token"] for row in rows) * 0.8, max(row["bytes_per_token"] for row in rows) * 1.25]
        panel.plot(
            [x / 1e9 for x in span], [bandwidth / x for x in span], "k--", lw=1, label=f"{bandwidth / 1e9:.0f} GB/s"
        )
        for runtime in dict.fromkeys(row["runtime"] for row in rows):
            chosen = [row for row in rows if row["runtime"] == runtime]
            panel.plot(
                [row["bytes_per_token"] / 1e9 for row in chosen],
                [row["decode"] for row in chosen],
                "*" if runtime == "packed" else "o",
                ms=13 if runtime == "packed" else 6,
                label=runtime,
            )
        panel.set(
            xscale="log", yscale="log", xlabel="GB read for a token", title=f"{threads} thread{'s' * (threads > 1)}"
        )
        ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 5) if span[0] <= tick * 1e9 <= span[1]]
        panel.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        panel.minorticks_off()
        panel.grid(alpha=0.3, which="both")
        panel.legend(fontsize=8)
    panels[0].set_ylabel("tokens/s, decoding")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
