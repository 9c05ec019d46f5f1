"""The command line of a benchmark with cases: it measures and prints each case, then prints all as a table."""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import torch


def run(measure: Callable[[str, int, float], dict[str, Any]], cases: Sequence[str], description: str | None) -> None:
    """Measure the cases that the command line names, or all cases."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(cases)}")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4, help="of each program in each turn")
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)
    torch.set_num_threads(os.cpu_count() or 1)
    print(
        f"{os.cpu_count()} cores, {args.devices} devices, jax {jax.__version__}, torch {torch.__version__}, "
        f"{args.turns} turns"
    )
    rows = []
    for case in args.cases or cases:
        rows.append(measure(case, args.turns, args.seconds))
        print(" | ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    print("\n| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")
