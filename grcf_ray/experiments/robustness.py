"""Experiments that change what a trained model is shown: noise on audio and vision, or either taken away.

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
from grcf_ray.experiments import paper
from grcf_ray.experiments.arms import Rescored, arm_result, figures, head_metrics
from grcf_ray.experiments.context import ExperimentContext, Model
from grcf_ray.experiments.model_pool import Arm
from grcf_ray.experiments.plotting import draw_lines
from grcf_ray.experiments.result import ExperimentResult, Picture
from grcf_ray.metrics import METRIC_TITLES
from grcf_ray.search.comparisons import few_seeds
from grcf_ray.search.winner import note_test_read
from grcf_ray.statistics import spread
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import text_vectors
from grcf_ray.train.export import SavedModel, load_model
from grcf_ray.train.stage import use_deterministic_torch

SIGMAS = (0.0, 0.01, 0.05, 0.1, 0.15, 0.2, 0.3)
"""Deviations of the noise, Table 5."""
DRAWS = 5
"""Draws of the noise for each deviation."""
_WAYS = {"standardised": "after standardisation", "raw": "on the values as imported"}
_SHOWN = {"text+vision+audio": "T + V + A", "text+vision": "T + V", "text+audio": "T + A", "text": "T"}
"""Rows of Table 10: what the model is shown."""


def noise(context: ExperimentContext) -> ExperimentResult:
    """Table 5: Gaussian noise on the audio and vision of test, at inference."""
    arm, notes = _full_model(context)
    models = context.models([arm], "noise")[arm.name]
    metrics = head_metrics(context)[:2]
    # By way, then deviation: of each seed the figures of every draw.
    found: dict[str, dict[float, list[list[dict[str, float]]]]] = {}
    for model, reader in _readers(context, models, "noise"):
        for way, scales in _scales(reader.saved).items():
            for index, sigma in enumerate(SIGMAS if scales else SIGMAS[:1]):
                draws = []
                for draw in range(DRAWS if sigma else 1):
                    # The same noise for every model.
                    rng = np.random.default_rng([context.config.seed, index, draw])
                    score_N = reader.score(_noisy(reader.table, scales, sigma, rng))
                    draws.append(figures(context, score_N, model.scored("test").label_N))
                found.setdefault(way, {}).setdefault(sigma, []).append(draws)
    if not any(sigma for of in found.values() for sigma in of):
        notes.append("The data have text alone, so every σ is the clean result: the other cells need audio or vision.")
    elif "standardised" not in found:
        notes.append("The model was trained without standardising, so noise is added to the values as imported alone.")
    else:
        notes.append(
            "The paper does not say where its noise is added. After standardisation σ is a share of each feature's "
            "deviation over the training rows; of raw values some reach hundreds, where 0.3 is next to nothing, and "
            "others stay below a hundredth, where 0.01 leaves nothing of them."
        )
    notes.append(
        f"Means over {DRAWS} draws of the noise and the seeds; deviations over seeds, of the draws' means. The noise "
        "is the same for every seed. An utterance that lacks a modality lacks it with noise too."
    )
    tables = [_noise_table(context, way, found[way], metrics) for way in found]
    return ExperimentResult(
        name="noise",
        title=f"Noise on audio and vision of {context.store.info.name}",
        paper="Table 5",
        tables=tables,
        pictures=[_noise_picture(tables, metrics)] if any(len(of) > 1 for of in found.values()) else (),
        notes=notes,
        data={way: [{"sigma": sigma, "seeds": seeds} for sigma, seeds in of.items()] for way, of in found.items()},
    )


def modalities(context: ExperimentContext) -> ExperimentResult:
    """Table 10: audio or vision taken from a model that was trained with both, at inference."""
    if not context.config.model.sees_text:
        raise ConfigError("modalities shows the model its text with and without audio and vision; this run's has none")
    arm, notes = _full_model(context)
    models = context.models([arm], "modalities")[arm.name]
    measured: dict[str, list[Rescored]] = {name: [] for name in _SHOWN}
    missing: dict[str, list[str]] = {}
    for model, reader in _readers(context, models, "modalities"):
        dims = reader.saved.model.modality_dims
        for name in _SHOWN:
            shown = name.split("+")
            if lacking := [other for other in shown if other != "text" and other not in dims]:
                missing[name] = lacking
                continue
            table = reader.table
            hidden = {other: pa.nulls(len(table), table.schema.field(other).type) for other in dims}
            score_N = reader.score({other: column for other, column in hidden.items() if other not in shown})
            measured[name].append(Rescored.of(context, model.index, model.scored("test"), score_N))
    notes += [f"{_SHOWN[name]} cannot be had: the data have no {' and no '.join(of)}." for name, of in missing.items()]
    return arm_result(
        context,
        [Arm(name, title) for name, title in _SHOWN.items()],
        measured,
        context.printed(paper.MODALITIES),
        name="modalities",
        title=f"Modalities shown to the full model on {context.store.info.name}",
        paper="Table 10",
        notes=[
            *notes,
            "The models are trained once, with all modalities. One that is taken away counts as missing in every "
            "utterance: its rows are left out and its vector is zero.",
        ],
    )


class _Reader:
    """A trained model that has encoded the texts of test, to be shown other audio and vision with them."""

    def __init__(self, saved: SavedModel, table: pa.Table) -> None:
        self.saved, self.table = saved, table
        features = saved.features_of(table)
        # In the batches that scoring makes, so that the scores are the same bits.
        encoder, budget = saved.model.text_encoder, saved.config.pairs.micro_batch_tokens
        self._vector_ND = None
        if encoder is not None:
            self._vector_ND = text_vectors(features, features.valid, encoder, token_budget=budget)

    def score(self, columns: Mapping[str, pa.Array]) -> NDArray[np.float64]:
        """[N] scores with these columns in place of the table's."""
        table = self.table
        for name, column in columns.items():
            table = table.set_column(table.column_names.index(name), name, column)
        features = self.saved.features_of(table)
        split = dataclasses.replace(features.valid, vector_ND=self._vector_ND)
        return self.saved.score_features(dataclasses.replace(features, valid=split))


def _full_model(context: ExperimentContext) -> tuple[Arm, list[str]]:
    """The full model with every modality that the data have, and what has to be said of it."""
    seen, info = context.config.model.modalities, context.store.info
    has = [name for name, dim in (("audio", info.audio_dim), ("vision", info.vision_dim)) if dim is not None]
    notes = [console.sentence(note) for note in (few_seeds(context.seeds),) if note]
    if seen == "all" or all(name in seen for name in has):
        return Arm("full", "Full model"), notes
    every = "all" if context.config.model.sees_text else "+".join(has)
    notes.append(
        f"The search's winner sees {seen}. Here its parameters are trained with model.modalities={every}, so that "
        f"there is {' and '.join(has)} to change."
    )
    return Arm("all-modalities", "Full model, all modalities", {"model.modalities": every}), notes


def _readers(context: ExperimentContext, models: Sequence[Model], experiment: str) -> Iterator[tuple[Model, _Reader]]:
    """The models one after another, each with test's texts encoded; the reading of test is noted."""
    names = [str(model.place).removeprefix(f"{context.record.place}/") for model in models]
    note_test_read(context.record.place / "best", f"reproduce {experiment}", names)
    table = context.store.read("test")
    # As many as the clean figures were measured with: the same bits.
    use_deterministic_torch(context.config.search.cpus_per_worker)
    for number, model in enumerate(models, start=1):
        console.progress(f"{experiment}: model {number} of {len(models)}")
        with model.place.reading_folder() as folder:
            yield model, _Reader(load_model(folder), table)


def _scales(saved: SavedModel) -> dict[str, dict[str, NDArray[np.float32]]]:
    """By way, what a deviation of 1 is in each column [A] of the modalities that a model sees."""
    dims = saved.model.modality_dims
    ways = {"raw": {name: np.ones(dim, np.float32) for name, dim in dims.items()}}
    if all(name in saved.standardisers for name in dims) and dims:
        ways = {"standardised": {name: saved.standardisers[name].deviation_A for name in dims}, **ways}
    return ways


def _noisy(
    table: pa.Table, scales: Mapping[str, NDArray[np.float32]], sigma: float, rng: np.random.Generator
) -> dict[str, pa.Array]:
    """The columns with noise of deviation sigma times the scale on every row that is there."""
    columns = {}
    for name, scale_A in scales.items():
        frames = Frames.of(table[name])
        rows_RA = frames.values.reshape(-1, len(scale_A))
        noise_RA = rng.standard_normal(rows_RA.shape, dtype=np.float32)
        noisy_RA = rows_RA + np.float32(sigma) * scale_A * noise_RA
        noisy = dataclasses.replace(frames, values=noisy_RA.reshape(-1))
        columns[name] = noisy.to_arrow(width=len(scale_A))
    return columns


def _noise_table(
    context: ExperimentContext,
    way: str,
    found: Mapping[float, Sequence[Sequence[Mapping[str, float]]]],
    metrics: Sequence[str],
) -> Table:
    printed = context.printed(paper.NOISE)
    rows = []
    for sigma in SIGMAS:
        row: dict[str, Any] = {"title": f"{sigma:g}", "sigma": sigma}
        for name in metrics:
            row[f"paper {name}"] = printed.get(row["title"], {}).get(name)
            # A correlation is undefined where all scores are the same.
            whole = [draws for draws in found.get(sigma, ()) if all(name in draw for draw in draws)]
            if whole:
                figure = spread([float(np.mean([draw[name] for draw in draws])) for draws in whole])
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
    shown = [column for column in columns if any(row.get(column.key) is not None for row in rows)]
    return Table(way, f"Test under noise {_WAYS[way]}", shown, rows)


def _noise_picture(tables: Sequence[Table], metrics: Sequence[str]) -> Picture:
    lines: dict[str, list[dict[str, Any]]] = {name: [] for name in metrics}
    for name in metrics:
        for table in tables:
            lines[name].append(
                {
                    "name": _WAYS[table.name],
                    "x": [row["sigma"] for row in table.rows if name in row],
                    "y": [row[name] for row in table.rows if name in row],
                    "error": [row[f"deviation {name}"] or 0.0 for row in table.rows if name in row],
                }
            )
    panels = [
        {"title": METRIC_TITLES[name], "x_title": "σ", "y_title": METRIC_TITLES[name], "lines": lines[name]}
        for name in metrics
    ]
    return Picture(
        name="noise",
        caption="Mean over draws and seeds, bars of one deviation over seeds.",
        data={"panels": panels},
        draw=draw_lines,
    )
