"""Experiments that change the input of a trained model: noise on audio and vision, or either removed.

N utterances; R rows of audio or vision of A values each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grcf_ray import console
from grcf_ray.data.frames import Frames
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.arms import Rescored, arm_result, figures, head_metrics
from grcf_ray.experiments.context import ExperimentContext, Model
from grcf_ray.experiments.masking import Rescorer
from grcf_ray.experiments.model_pool import Arm
from grcf_ray.experiments.plotting import draw_lines, metric_panel
from grcf_ray.experiments.result import ExperimentResult, Picture, few_seeds_notes, shown_columns
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.statistics import finite_spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.export import SavedModel

SIGMAS = (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Deviations of the noise, Table 5."""
DRAWS = 5
"""Draws of the noise for each deviation."""
_NOISE_TITLES = {"standardised": "after standardisation", "raw": "on the values as imported"}
_SHOWN = {"text+vision+audio": "T + V + A", "text+vision": "T + V", "text+audio": "T + A", "text": "T"}
"""Rows of Table 10: the modalities that the model sees."""


def noise(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 5: Gaussian noise on the audio and vision of test, at inference."""
    arm, notes = _full_model(context)
    models = context.models([arm], "noise")[arm.name]
    metrics = head_metrics(context)[:2]
    # By scale of the noise, then deviation: for each seed the metrics of every draw.
    measured: dict[str, dict[float, list[list[dict[str, float]]]]] = {}
    for model, reader in _readers(context, models, "noise"):
        for scale, scales in _scales(reader.saved).items():
            for index, sigma in enumerate(SIGMAS if scales else SIGMAS[:1]):
                draws = []
                for draw in range(DRAWS if sigma else 1):
                    # The same noise for every model.
                    rng = np.random.default_rng([context.config.seed, index, draw])
                    score_N = reader.score(_noisy(reader.table, scales, sigma, rng))
                    draws.append(figures(context, score_N, model.scored("test").label_N))
                measured.setdefault(scale, {}).setdefault(sigma, []).append(draws)
    if not any(sigma for by_sigma in measured.values() for sigma in by_sigma):
        notes.append("The data have text alone, so every σ is the clean result: the other cells need audio or vision.")
    elif "standardised" not in measured:
        notes.append("The model was trained without standardisation, so noise is added to the imported values alone.")
    else:
        notes.append(
            "The paper does not say where its noise is added. After standardisation σ is a share of each feature's "
            "deviation over the training rows. Some raw values reach hundreds, where 0.3 is negligible; others stay "
            "below a hundredth, where 0.01 drowns them."
        )
    notes.append(
        f"Means over {DRAWS} draws of the noise and the seeds; deviations over seeds, of the draws' means. The noise "
        "is the same for every seed. A missing modality stays missing."
    )
    tables = [_noise_table(context, scale, by_sigma, metrics) for scale, by_sigma in measured.items()]
    return ExperimentResult(
        title=f"Noise on audio and vision of {context.store.info.name}",
        tables=tables,
        pictures=[_noise_picture(tables, metrics)] if any(len(by_sigma) > 1 for by_sigma in measured.values()) else (),
        notes=notes,
        data={
            scale: [{"sigma": sigma, "seeds": seeds} for sigma, seeds in by_sigma.items()]
            for scale, by_sigma in measured.items()
        },
    )


def modalities(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 10: audio or vision removed at inference from a model that was trained with both."""
    if not context.config.model.sees_text:
        raise ConfigError("modalities scores the text with and without audio and vision; this run's model has no text")
    arm, notes = _full_model(context)
    models = context.models([arm], "modalities")[arm.name]
    measured: dict[str, list[Rescored]] = {name: [] for name in _SHOWN}
    missing: dict[str, list[str]] = {}
    for model, reader in _readers(context, models, "modalities"):
        sees = ("text", *reader.saved.model.modality_dims)
        for name in _SHOWN:
            shown = name.split("+")
            if lacking := [modality for modality in shown if modality not in sees]:
                missing[name] = lacking
                continue
            score_N = reader.score_by(shown)
            measured[name].append(Rescored(context, model.index, model.scored("test"), score_N))
    notes += [
        f"{_SHOWN[name]} is not available: the data have no {' and no '.join(lacking)}."
        for name, lacking in missing.items()
    ]
    return arm_result(
        context,
        [Arm(name, title) for name, title in _SHOWN.items()],
        measured,
        context.printed("modalities"),
        title=f"Modalities shown to the full model on {context.store.info.name}",
        notes=[
            *notes,
            "The models are trained once, with all modalities. A removed modality counts as missing in every "
            "utterance: its rows are left out and its vector is zero.",
        ],
    )


def _full_model(context: ExperimentContext) -> tuple[Arm, list[str]]:
    """Return the full model with every modality of the data, and notes on it."""
    seen, info = context.config.model.modalities, context.store.info
    has = list(info.dims)
    notes = [console.sentence(note) for note in few_seeds_notes(context.seeds)]
    if seen == "all" or all(name in seen for name in has):
        return Arm("full", "Full model"), notes
    every = "all" if context.config.model.sees_text else "+".join(has)
    notes.append(
        f"The search's winner sees {seen}. Here its parameters are trained with model.modalities={every}, to have "
        f"{' and '.join(has)} to change."
    )
    return Arm("all-modalities", "Full model, all modalities", {"model.modalities": every}), notes


def _readers(context: ExperimentContext, models: Sequence[Model], experiment: str) -> Iterator[tuple[Model, Rescorer]]:
    """Yield each model with the encoded texts of test, and record that test was read."""
    context.note_test_read(models, experiment)
    table = context.store.read("test")
    for number, model in enumerate(models, start=1):
        console.progress(f"{experiment}: model {number} of {len(models)}")
        yield model, Rescorer(model.load(), table)


def _scales(saved: SavedModel) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Return by scale of the noise: the value of one deviation in each column [A] of the model's modalities."""
    dims = saved.model.modality_dims
    raw = {name: np.ones(dim, np.float32) for name, dim in dims.items()}
    if not dims or not all(name in saved.standardisers for name in dims):
        return {"raw": raw}
    return {"standardised": {name: saved.standardisers[name].deviation_A for name in dims}, "raw": raw}


def _noisy(
    table: pa.Table, scales: Mapping[str, NDArray[np.float32]], sigma: float, rng: np.random.Generator
) -> dict[str, pa.Array]:
    """Return the columns with noise of deviation sigma times the scale on every row that is present."""
    columns = {}
    for name, scale_A in scales.items():
        frames = Frames.of(table[name])
        rows_RA = frames.values.reshape(-1, len(scale_A))
        noisy_RA = rows_RA + np.float32(sigma) * scale_A * rng.standard_normal(rows_RA.shape, dtype=np.float32)
        columns[name] = dataclasses.replace(frames, values=noisy_RA.reshape(-1)).to_arrow(width=len(scale_A))
    return columns


def _noise_table(
    context: ExperimentContext,
    scale: str,
    by_sigma: Mapping[float, Sequence[Sequence[Mapping[str, float]]]],
    metrics: Sequence[str],
) -> Table:
    printed = context.printed("noise")
    rows = []
    for sigma in SIGMAS:
        row: dict[str, Any] = {"title": f"{sigma:g}", "sigma": sigma}
        for name in metrics:
            row[f"paper {name}"] = printed.get(row["title"], {}).get(name)
            # The correlation of constant scores is undefined.
            defined = [draws for draws in by_sigma.get(sigma, ()) if all(name in draw for draw in draws)]
            if figure := finite_spread(float(np.mean([draw[name] for draw in draws])) for draws in defined):
                row |= {name: figure.mean, f"deviation {name}": figure.deviation, "seeds": len(figure.values)}
        rows.append(row)
    columns = [Column("title", "σ")]
    for name in metrics:
        title = METRIC_TITLES[name]
        columns += [
            Column(f"paper {name}", f"paper {title}", "{:.3f}"),
            Column(name, title, "{:.4f}"),
            Column(f"deviation {name}", "deviation", "{:.4f}"),
        ]
    columns.append(Column("seeds", "seeds"))
    return Table(scale, f"Test under noise {_NOISE_TITLES[scale]}", shown_columns(columns, rows), rows)


def _noise_picture(tables: Sequence[Table], metrics: Sequence[str]) -> Picture:
    def line(table: Table, metric: str) -> dict[str, Any]:
        rows = [row for row in table.rows if metric in row]
        return {
            "name": _NOISE_TITLES[table.name],
            "x": [row["sigma"] for row in rows],
            "y": [row[metric] for row in rows],
            "error": [row[f"deviation {metric}"] or 0.0 for row in rows],
        }

    return Picture(
        name="noise",
        caption="Mean over draws and seeds, error bars of one deviation over seeds.",
        data={"panels": [metric_panel(name, "σ", [line(table, name) for table in tables]) for name in metrics]},
        draw=draw_lines,
    )
