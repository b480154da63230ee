"""The results of a check as Markdown and as a plot."""

from __future__ import annotations

from pathlib import Path

from gptoss_native.bench.op_times import HEADER, Figure

from bench.gpu.stages import Record


def figures_of(record: Record) -> list[Figure]:
    """Every op's measurements, in the order of the stages."""
    results = [result for name, result in record.results.items() if name.startswith("op ")]
    return [Figure(**figure) for result in results for figure in result.get("figures", [])]


def markdown(record: Record) -> str:
    """Facts, stages, the whole model, ops beside their limits."""
    lines = ["# GPU check", "", *(f"- {key}: {value}" for key, value in record.facts.items()), ""]
    lines += ["| stage | result | s |", "|---|---|---|"]
    for name, result in record.results.items():
        outcome = "ok" if result.get("ok") else "FAILED: " + result.get("error", "").splitlines()[0][:200]
        lines.append(f"| {name} | {result.get('note', outcome)} | {result.get('seconds', '')} |")
    limits = record.results.get("limits", {})
    if limits.get("ok"):
        lines += ["", f"Copy bandwidth {limits['bandwidth'] / 1e12:.2f} TB/s"]
        lines[-1] += f", bf16 products {limits['flops'] / 1e12:.0f} TFLOP/s." if limits.get("flops") else "."
    model = record.results.get("model", {})
    if model.get("ok"):
        lines += [
            "",
            f"Load {model['load GB/s']:.2f} GB/s, first token after {model['start to first token s']:.2f} s.",
        ]
        lines += ["", "| batch | tok/s | of bandwidth |", "|---|---|---|"]
        lines += [f"| {d['batch']} | {d['tok/s']:,.0f} | {d['share']:.0%} |" for d in model["decode"]]
        lines += ["", "| prompt | tok/s |", "|---|---|"]
        lines += [f"| {p['tokens']} | {p['tok/s']:,.0f} |" for p in model["prompts"]]
    found = figures_of(record)
    if found:
        lines += ["", "```", HEADER, *map(str, found), "```"]
    return "\n".join(lines) + "\n"


def plot(record: Record, path: Path) -> bool:
    """Share of the limit by rows, a line for each op; False where matplotlib is not there."""
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    lines: dict[str, list[Figure]] = {}
    for figure in figures_of(record):
        lines.setdefault(f"{figure.op} {figure.variant}".strip(), []).append(figure)
    if not lines:
        return False
    chart, axes = plt.subplots(figsize=(9, 5.5), layout="constrained")
    for number, (label, found) in enumerate(lines.items()):
        axes.plot(
            [figure.rows for figure in found],
            [100 * figure.share for figure in found],
            marker="osD^v"[number // 10 % 5],
            label=label,
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="rows of a step", ylabel="% of the limit (bytes or products)", ylim=(0, 105))
    axes.set_title(f"{record.facts['device']}, commit {record.facts['commit']}, {record.facts['date']}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7, ncols=2)
    chart.savefig(path, dpi=150)
    plt.close(chart)
    return True
