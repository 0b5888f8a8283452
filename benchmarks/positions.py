"""Compare DeBERTa-v3-base's layers with transformers' own and with those of an earlier commit, in turn in one process.

    python benchmarks/positions.py --before 573e2b6 --out docs/performance

The weights are random. Takes about two minutes, and needs a git checkout.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import subprocess
from datetime import date
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers

from grcf_ray.bench import layers
from grcf_ray.bench.measure import TIMES, Variant, interleave
from grcf_ray.console import progress
from grcf_ray.files import write_text
from grcf_ray.model import deberta
from grcf_ray.tables import Column, Table

REPETITIONS = 5
CPU = torch.device("cpu")


def module_at(commit: str) -> Any:
    """Return `grcf_ray.model.deberta` as it was at a commit."""
    command = ["git", "show", f"{commit}:grcf_ray/model/deberta.py"]
    source = subprocess.run(command, cwd=Path(__file__).parent, check=True, capture_output=True, text=True).stdout
    module = ModuleType(f"deberta_{commit}")
    exec(compile(source, f"deberta.py of {commit}", "exec"), module.__dict__)
    return module


def compare(before: Any, *, depth: int, repetitions: int) -> Table:
    """Return CPU time, kernels and gradients of the library's layers, the earlier ones and the present ones."""
    stock = layers.stock_deberta(depth, CPU)
    backbones = {
        "transformers' own": stock,
        "before": before.cut_positions(copy.deepcopy(stock)),
        "now": deberta.cut_positions(copy.deepcopy(stock)),
    }
    rows = []
    for length in layers.LENGTHS:
        token_BL = layers.random_texts(length, CPU)
        passes = {name: layers.encoder_pass(backbone, token_BL) for name, backbone in backbones.items()}
        timings = interleave([Variant(name, run) for name, run in passes.items()], repetitions, CPU, progress)
        differences = {
            name: None if backbone is stock else layers.gradient_difference(backbone, stock, token_BL)
            for name, backbone in backbones.items()
        }
        medians = [statistics.median(seconds) for seconds in timings]
        for (name, run), seconds, median in zip(passes.items(), timings, medians, strict=True):
            rows.append(
                {
                    "name": f"length {length}, {name}",
                    "least": min(seconds),
                    "median": median,
                    "speed_up": medians[0] / median,
                    "kernels": layers.count_kernels(run),
                    "difference": differences[name],
                }
            )
    columns = (
        Column("name", f"{depth} layers, a micro-batch of 1,024 subwords"),
        *TIMES,
        layers.KERNELS,
        layers.DIFFERENCE,
    )
    return Table("positions", "DeBERTa-v3's relative positions", columns, rows, (layers.KERNELS_NOTE,))


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="COMMIT", help="commit to compare with")
    parser.add_argument("--layers", type=int, default=3, metavar="N", help="layers of the encoder [default: 3]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for positions.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = compare(module_at(options.before), depth=options.layers, repetitions=REPETITIONS)
    facts = {
        "command": f"`python benchmarks/{Path(__file__).name} --before {options.before} --out docs/performance`",
        "date": date.today(),
        "times": f"CPU time of one thread, forward and backward, {REPETITIONS} calls in turn",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
    }
    lines = "\n".join(f"- {name}: {fact}" for name, fact in facts.items())
    page = f"# Performance: relative positions of DeBERTa-v3\n\n{lines}\n\n{table.markdown()}\n"
    print(page)
    if options.out is not None:
        write_text(options.out / "positions.md", page)


if __name__ == "__main__":
    main()
