"""Depth and width with and without shortcuts on digits (paper figures 5 and 6 in miniature), and how convex they are.

    python -m studies.shortcuts [--runs runs/shortcuts] [--out docs/studies]

ResNets of 20, 32 and 44 layers, that of 32 also twice as wide, each with and without shortcuts: a rate of 0.02, 60
epochs (with a warm-up of 10 epochs, 32 and 44 layers without shortcuts did not fit: 8 % and 10 % training error).
Around each minimizer: a filter-normalized plane, the same draw for all. It writes shortcuts.csv (errors, and the
measures of the plane) and shortcuts.png. A training and a surface that is finished is kept in ``--runs``; the same
command goes on.
"""

import argparse
from pathlib import Path

import pandas as pd
import xarray as xr
from tqdm.auto import tqdm

import jaxscape as js
from jaxscape.objective import use_all_cores
from train import folder_name, train
from training.config import Config

NETWORKS = (("resnet20", 1), ("resnet32", 1), ("resnet32", 2), ("resnet44", 1))
PLANE = js.Grid.plane((-1, 1, 31), (-1, 1, 31))
LEVELS = (0.001, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)
EXAMPLES = 256  # of the 1,437 images of training


def configs() -> list[Config]:
    """The options of all networks: those with shortcuts, then those without."""
    recipe = {"lr": 0.02, "epochs": 60, "save_every": 60}
    return [Config(arch=arch, width=width, noshort=no, **recipe) for no in (False, True) for arch, width in NETWORKS]


def measured(config: Config, runs: Path) -> tuple[dict[str, object], xr.Dataset]:
    """The errors of a network and the measures of its plane; and the surface."""
    folder = runs / folder_name(config)
    run = train(config, folder, resume=True, progress=False)
    data = tuple(x[:EXAMPLES] for x in run.data)
    surface = js.surface(run.params, run.loss_fn, data, seed=0, grid=PLANE, store=folder / "plane.zarr", progress=False)
    last = run.metrics[-1]
    return {
        "network": config.arch + (f", {config.width} times as wide" if config.width > 1 else ""),
        "shortcuts": not config.noshort,
        **{name: last[name] for name in ("train_error", "test_error", "train_loss", "test_loss")},
        **js.plane_measures(surface).value.to_dict(),
        "largest_loss": float(surface.loss.max()),
    }, surface


def main() -> None:
    """Train and measure what is missing, then write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/shortcuts"))
    parser.add_argument("--out", type=Path, default=Path("docs/studies"))
    args = parser.parse_args()
    use_all_cores()
    rows, surfaces = zip(*(measured(config, args.runs) for config in tqdm(configs(), unit="network")), strict=True)
    table = pd.DataFrame(rows)
    titles = [
        f"{row.network}\n{'with' if row.shortcuts else 'without'} shortcuts, test error {row.test_error:.1f} %"
        for row in table.itertuples()
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(args.out / "shortcuts.csv", index=False, float_format="%.6g")
    figure = js.plot.compare(dict(zip(titles, surfaces, strict=True)), kind="contourf", levels=LEVELS, columns=4)
    js.plot.save(figure, args.out / "shortcuts.png", dpi=80)
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
