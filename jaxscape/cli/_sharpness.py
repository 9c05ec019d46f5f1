"""The command ``sharpness``: measures of flatness at a minimizer."""

from typing import Annotated, Any

import jax
import typer

import jaxscape as js
from jaxscape.cli import _options as options
from jaxscape.cli._app import command
from jaxscape.cli._files import print_table
from jaxscape.cli._targets import data_of, load_target, name_of


@command("jaxscape sharpness runs/a runs/b --measure lambda_max --measure trace", distributed=True)
def sharpness(
    runs: options.Targets,
    measure: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Which measures; repeat it. [default: all]")
    ] = None,
    rho: Annotated[float, typer.Option(metavar="X", help="Radius of adaptive measures and m-sharpness.")] = 0.05,
    epsilon: Annotated[float, typer.Option(metavar="X", help="Half the width of Keskar's box.")] = 1e-3,
    sigma: Annotated[float, typer.Option(metavar="X", help="Standard deviation of the low-pass noise.")] = 0.01,
    num_samples: Annotated[int, typer.Option(metavar="N", help="Random displacements or products.")] = 100,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random numbers.")] = 0,
    split: options.OfSplit = "train",
    batch_size: options.BatchSize = "auto",
) -> dict[str, Any]:
    """Measures of sharpness at each minimizer, with their standard errors."""
    tables: dict[str, Any] = {}
    for run in runs:
        target = load_target(run)
        table = js.sharpness(
            target.params,
            target.loss_fn,
            data_of(target, split),
            measures=measure,
            rho=rho,
            epsilon=epsilon,
            sigma=sigma,
            num_samples=num_samples,
            key=seed,
            batch_size=batch_size,
        )
        if jax.process_index():
            continue
        target.path.mkdir(parents=True, exist_ok=True)
        file = target.path / "sharpness.csv"
        table.to_csv(file)
        print(file)
        rows = [("measure", "value", "standard error")]
        rows += [(str(name), f"{row.value:.6g}", f"{row.stderr:.2g}") for name, row in table.iterrows()]
        print(f"{run}: {name_of(target)}, {split}")
        print_table(rows, left=1)
        values = {str(name): {"value": float(row.value), "stderr": float(row.stderr)} for name, row in table.iterrows()}
        tables[run] = {"table": file, "measures": values}
    return tables
