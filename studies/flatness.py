"""Does a flat minimizer generalize? Digits, networks trained in 16 ways, three seeds each: all measures of sharpness.

    python -m studies.flatness [--runs runs/flatness] [--out docs/studies]

{SGD, Adam} x {batches of 32, of 512} x {weight decay 0, 5e-4} x {VGG-9, ResNet-20} (paper sections 3 to 5), 30 epochs.
Each network gets a row: its errors, its measures of `js.sharpness`, and those of a filter-normalized plane. They are
rank-correlated with the test error, over the 24 networks of each architecture.

A training and a row that is finished is kept in ``--runs``; the same command goes on. It writes flatness.csv (the
rows), flatness_correlations.csv and flatness.png.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import stats
from tqdm.auto import tqdm

import jaxscape as js
from jaxscape.files import replace_text
from jaxscape.objective import use_all_cores
from train import folder_name, train
from training.config import Config

ARCHITECTURES = {"vgg9": "VGG-9", "resnet20": "ResNet-20"}
SMALL, LARGE, EPOCHS, SEEDS = 32, 512, 30, 3
EXAMPLES, M = 256, 64  # of the 1,437 images of training, for the measures; of these, a batch of m-sharpness
SAMPLES = 10  # random displacements and products of a measure
PLANE = js.Grid.plane((-1, 1, 21), (-1, 1, 21))
SETTING = ["optimizer", "batch_size", "weight_decay"]


def configs() -> list[Config]:
    """The options of all networks, those of one seed after another."""
    choices = itertools.product(range(SEEDS), ARCHITECTURES, ("sgd", "adam"), (SMALL, LARGE), (0.0, 5e-4))
    return [
        Config(
            arch=arch,
            optimizer=optimizer,
            batch_size=size,
            weight_decay=decay,
            seed=seed,
            epochs=EPOCHS,
            save_every=EPOCHS,
        )
        for seed, arch, optimizer, size, decay in choices
    ]


def row(config: Config, runs: Path) -> dict[str, object]:
    """The options, errors and measures of a network, from its file if they are known."""
    folder = runs / folder_name(config)
    known = folder / "flatness.json"
    if known.exists():
        return json.loads(known.read_text())
    run = train(config, folder, resume=True, progress=False)
    data = tuple(x[:EXAMPLES] for x in run.data)
    sharpness = js.sharpness(run.params, run.loss_fn, data, num_samples=SAMPLES, m=M, progress=False)
    plane = js.surface(run.params, run.loss_fn, data, seed=0, grid=PLANE, progress=False)
    measured = pd.concat([sharpness, js.plane_measures(plane)])
    last = run.metrics[-1]
    result = {
        "arch": config.arch,
        **{name: getattr(config, name) for name in SETTING},
        "seed": config.seed,
        **{name: last[name] for name in ("train_loss", "train_error", "test_loss", "test_error")},
        "weight_norm": float(js.weight_norms([run.params]).norm.sel(leaf="all")[0]),
        **measured.value.to_dict(),
        "notes": "; ".join(f"{name}: {note}" for name, note in measured.note.items() if note),
    }
    replace_text(known, json.dumps(result))
    return result


def correlations(table: pd.DataFrame, quantity: str = "test_error") -> Iterator[dict[str, object]]:
    """Spearman's rank correlation of each measure with the test error, with a 95 % bootstrap interval.

    The three seeds of a setting are no independent settings: the bootstrap draws settings, and takes their seeds along.
    """
    for arch, rows in table.sort_values(SETTING).groupby("arch", sort=False):
        error = rows[quantity].to_numpy().reshape(-1, SEEDS)
        for measure in measures(table):
            values = rows[measure].to_numpy(np.float64).reshape(-1, SEEDS)
            result = {"arch": arch, "measure": measure, "networks": len(rows)}
            if np.ptp(values) == 0 or not np.isfinite(values).all():
                yield {**result, "spearman": np.nan, "low": np.nan, "high": np.nan}
                continue

            def rank(settings: np.ndarray, values: np.ndarray = values, error: np.ndarray = error) -> float:
                return float(stats.spearmanr(values[settings].ravel(), error[settings].ravel()).statistic)

            every = np.arange(len(values))
            bootstrap = stats.bootstrap(
                (every,), rank, vectorized=False, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
            )
            low, high = bootstrap.confidence_interval
            yield {**result, "spearman": rank(every), "low": low, "high": high}


def measures(table: pd.DataFrame) -> list[str]:
    """The columns that are measures."""
    return list(table.columns[table.columns.get_loc("weight_norm") : table.columns.get_loc("notes")])


def picture(table: pd.DataFrame, ranks: pd.DataFrame) -> plt.Figure:
    """Test error against each measure."""
    names = [name for name in measures(table) if np.ptp(table[name]) > 0]
    figure, axes = plt.subplots(4, -(-len(names) // 4), figsize=(15, 11), sharey=True, layout="constrained")
    for ax in axes.ravel()[len(names) :]:
        ax.remove()
    for ax, measure in zip(axes.ravel(), names, strict=False):
        for (arch, title), marker in zip(ARCHITECTURES.items(), "o^", strict=True):
            for (optimizer, size), rows in table[table.arch == arch].groupby(["optimizer", "batch_size"]):
                ax.plot(
                    rows[measure],
                    rows.test_error,
                    marker,
                    color={"sgd": "C0", "adam": "C1"}[optimizer],
                    fillstyle="full" if size == SMALL else "none",
                    label=f"{title}, {optimizer}, batches of {size}",
                )
        found = ranks[ranks.measure == measure].set_index("arch").spearman
        ax.set_title(
            f"{measure}\n" + ", ".join(f"{ARCHITECTURES[arch]} {rank:+.2f}" for arch, rank in found.items()),
            fontsize="small",
        )
        ax.set_xscale("log" if 0 < 10 * table[measure].min() < table[measure].max() else "linear")
    figure.supylabel("test error (%)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main() -> None:
    """Train and measure what is missing, then write the tables and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/flatness"))
    parser.add_argument("--out", type=Path, default=Path("docs/studies"))
    args = parser.parse_args()
    use_all_cores()
    table = pd.DataFrame([row(config, args.runs) for config in tqdm(configs(), unit="network")])
    ranks = pd.DataFrame(correlations(table))
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "flatness.csv", index=False, float_format="%.6g")
    ranks.to_csv(args.out / "flatness_correlations.csv", index=False, float_format="%.3f")
    js.plot.save(picture(table, ranks), args.out / "flatness.png", dpi=80)
    print(ranks.pivot(index="measure", columns="arch", values=["spearman", "low", "high"]).round(2).to_string())


if __name__ == "__main__":
    main()
