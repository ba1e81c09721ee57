"""A simulation's result as two PNG files. The only place that needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_async.errors import ConfigError
from lightning_async.simulation.result import Result

DPI = 120


def plot(result: Result, folder: Path) -> list[Path]:
    """Write `<scenario>-loss.png` and `<scenario>-workers.png`; their paths. Raises ConfigError without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install 'lightning-async[plots]'") from error
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in (("loss", _draw_loss), ("workers", _draw_workers)):
        figure = draw(result, pyplot)
        paths.append(folder / f"{result.scenario}-{name}.png")
        figure.suptitle(f"{result.scenario}, seed {result.seed}")
        figure.tight_layout()
        figure.savefig(paths[-1], dpi=DPI)
        pyplot.close(figure)
    return paths


def _draw_loss(result: Result, pyplot: Any) -> Any:
    """The loss over virtual time and over steps."""
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), sharey=True)
    losses = [point.loss for point in result.curve]
    axes[0].plot([point.time_s for point in result.curve], losses, ".-", lw=1.2)
    axes[1].plot([point.steps for point in result.curve], losses, ".-", lw=1.2)
    if result.target_loss is not None:
        for axis in axes:
            axis.axhline(result.target_loss, color="grey", lw=0.8, ls="--")
    axes[0].set(xlabel="virtual seconds", ylabel="loss of the published parameters")
    axes[1].set(xlabel="accepted steps of all workers")
    return figure


def _draw_workers(result: Result, pyplot: Any) -> Any:
    """Utilisation, acceptance, staleness and megabytes of every worker."""
    figure, axes = pyplot.subplots(1, 3, figsize=(13, 0.22 * len(result.workers) + 3), sharey=True)
    names = [worker.name for worker in result.workers]
    rows = range(len(names))
    axes[0].barh(rows, [worker.utilisation for worker in result.workers], 0.8, label="utilisation")
    axes[0].plot([worker.acceptance for worker in result.workers], rows, "k|", label="acceptance")
    axes[1].barh(rows, [worker.staleness_mean for worker in result.workers], 0.8, label="mean")
    axes[1].plot([worker.staleness_p99 for worker in result.workers], rows, "k|", label="99 %")
    axes[2].barh(rows, [worker.sent_bytes / 1e6 for worker in result.workers], 0.8, label="sent")
    axes[2].plot([worker.received_bytes / 1e6 for worker in result.workers], rows, "k|", label="received")
    axes[0].set(xlabel="share", xlim=(0, 1.02))
    axes[1].set(xlabel="staleness of accepted updates, versions")
    axes[2].set(xlabel="MB")
    if len(names) <= 40:
        axes[0].set_yticks(list(rows), names, fontsize=7)
    axes[0].invert_yaxis()
    for axis in axes:
        axis.legend(fontsize=7)
    return figure
