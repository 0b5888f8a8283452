"""Table 9: what models learn on one data set, taken to another.

"There" is the run's data set, "here" the one that its models are taken to. What is trained here lies below the run,
`reproduce/transfer/<here>/<row>/<shape>/`, each laid out like a run; a row that starts from models of there has their
weights as the finalists of a Stage 1 that was trained there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.console import sentence
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.errors import ConfigError
from grcf_ray.experiments import paper
from grcf_ray.experiments.arms import Measured, Rescored, arm_result
from grcf_ray.experiments.context import ExperimentContext, Model
from grcf_ray.experiments.model_pool import Arm, configured, entry_of
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.search.record import TrialRecord, now
from grcf_ray.search.transfer import fit_features, score_on
from grcf_ray.search.winner import note_test_read
from grcf_ray.train.checkpoint import export_weights
from grcf_ray.train.export import SavedModel, load_model
from grcf_ray.train.stage import use_deterministic_torch

_TITLES = {
    "in-domain": "In-domain: both stages here",
    "zero-shot": "Zero-shot: both stages there",
    "stage1-there": "Transfer v1: Stage 1 there, Stage 2 here",
    "both-there": "Transfer v2: both stages there, Stage 2 here",
}
_MODALITIES = {(): "text", ("audio",): "text+audio", ("vision",): "text+vision", ("audio", "vision"): "all"}


def transfer(context: ExperimentContext) -> ExperimentResult:
    """Table 9: the run's models on another data set as they are, and after Stage 2 there."""
    here = _target(context)
    there_name, here_name = context.store.info.name, here.info.name
    settings, notes = _shared_modalities(context, here.info)
    place = context.record.place / "reproduce" / "transfer" / f"{here_name}-{here.info.fingerprint[:8]}"
    config = _rescaled(context, here.info)
    whole = Arm("there", f"Both stages on {there_name}", settings)
    there = context.models([whole], "transfer")[whole.name]
    with there[0].place.reading_folder() as folder:
        saved = load_model(folder)
    fitted = Fitted.of(here, saved)

    arms = [Arm(name, title, settings) for name, title in _TITLES.items()]
    by_name = {arm.name: arm for arm in arms}
    command = f"transfer --onto {here_name}"
    own = context.on(here, config, place / "in-domain")
    in_domain = own.models([by_name["in-domain"]], command)["in-domain"]
    models: dict[str, Sequence[Measured]] = {"in-domain": in_domain}
    stages: Mapping[str, Literal[1, 2]] = {"stage1-there": 1, "both-there": 2}
    for name, stage in stages.items():
        taken = context.on(fitted, config, place / name)
        with taken.held():
            _hand_over(context, taken, (whole, by_name[name]), stage)
        models |= taken.models([by_name[name]], command)
    models["zero-shot"] = [
        Rescored.of(own, model.index, in_domain[0].scored("test"), score_N)
        for model, score_N in _zero_shot(context, there, here, command)
    ]
    if here.info.label_range != context.store.info.label_range:
        notes.append("Label ranges differ: scores, margins and the model's reach are scaled from the one to the other.")
    return arm_result(
        own,
        arms,
        models,
        _printed(there_name, here_name),
        name=f"transfer-{here_name}",
        title=f"From {there_name} to {here_name}, measured on {here_name}",
        paper="Table 9",
        notes=[
            f"Measured on {here_name}, fingerprint {here.info.fingerprint}.",
            *notes,
            *map(sentence, fitted.notes()),
            f"Every row has the parameters of the winner on {there_name}; a search on {here_name} may find better "
            "ones.",
            "Zero-shot has the features standardised as the model's training data were. Where Stage 2 is trained here "
            f"they are standardised by {here_name}'s own training rows.",
        ],
    )


@dataclasses.dataclass(frozen=True)
class Fitted(DatasetStore):
    """A data set whose audio and vision are as wide as a model of another one takes them."""

    saved: SavedModel

    @classmethod
    def of(cls, store: DatasetStore, saved: SavedModel) -> Fitted:
        """The store, for this model."""
        dims = saved.model.modality_dims
        fills = {name: s.mean_A.tolist() for name, s in saved.standardisers.items()}
        text = f"{store.info.fingerprint} {sorted(dims.items())} {sorted(fills.items())}"
        info = dataclasses.replace(
            store.info,
            audio_dim=dims.get("audio", store.info.audio_dim),
            vision_dim=dims.get("vision", store.info.vision_dim),
            # Features are cached by it.
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        )
        return cls(store.folder, info, store.files, saved)

    def read(self, split: str) -> pa.Table:
        """The rows of one split, fitted."""
        return self._fit(super().read(split))[0]

    def notes(self) -> list[str]:
        """What fitting does."""
        return self._fit(super().read("train").slice(0, 1))[1]

    def _fit(self, table: pa.Table) -> tuple[pa.Table, list[str]]:
        return fit_features(table, self.info, self.saved, asked=True)


def _target(context: ExperimentContext) -> DatasetStore:
    if context.options.onto is None:
        raise ConfigError("transfer takes the run's models to another data set: --onto NAME")
    if not (context.config.stage1.epochs and context.config.stage2.epochs):
        raise ConfigError("transfer takes models of both stages; this run has one")
    here = find_data(context.options.onto, context.options.onto_data)
    if here.info.fingerprint == context.store.info.fingerprint:
        raise ConfigError(f"--onto {here.info.name}: the run was searched on these very data; give others")
    if here.info.task != context.store.info.task:
        raise ConfigError(
            f"the run was searched for {context.store.info.task}, and {here.info.name} is for {here.info.task}"
        )
    return here


def _shared_modalities(context: ExperimentContext, here: TableInfo) -> tuple[dict[str, Any], list[str]]:
    """The setting that makes all rows see what both data sets have, and what has to be said of it."""

    def has(info: TableInfo) -> list[str]:
        return [name for name, dim in (("audio", info.audio_dim), ("vision", info.vision_dim)) if dim is not None]

    there = context.store.info
    seen = context.config.model.modalities
    sees = [name for name in has(there) if seen == "all" or name in seen]
    shared = tuple(name for name in sees if name in has(here))
    if not context.config.model.sees_text:
        if not shared:
            raise ConfigError(f"the winner sees {seen} alone, and {here.name} has none of it")
        wanted = "+".join(shared)
        return ({"model.modalities": wanted} if wanted != seen else {}), []
    wanted = _MODALITIES[shared]
    notes = []
    if not shared:
        notes.append("Every row is of text alone, which is all that the winner sees and both data sets have.")
    elif list(shared) != sees:
        notes.append(f"Every row is of text and {shared[0]}, which is what both data sets have.")
    if wanted == seen or (seen == "all" and has(there) == has(here)):
        return {}, notes
    return {"model.modalities": wanted}, notes


def _rescaled(context: ExperimentContext, here: TableInfo) -> RunConfig:
    """The winner's configuration with its margins in the label units of here."""
    values = flatten(context.config)
    low, high = here.label_range
    ratio = (high - low) / 2 / context.half_range
    powers = {
        "ranking.intra_margin": 1,
        "ranking.base_margin": 1,
        "ranking.margin_step": 1,
        "stage1.reg_margin": 2,
    }
    if here.task == "regression":
        values |= {path: values[path] * ratio**power for path, power in powers.items()}
    return build_config(values, source=f"the winner's configuration on {here.name}")


def _hand_over(
    context: ExperimentContext, taken: ExperimentContext, arms: tuple[Arm, Arm], stage: Literal[1, 2]
) -> None:
    """Give the context of here the weights that a stage of there ended with, as trials of a Stage 1 that is over.

    arms: that of there and that of here. A seed whose training there came to nothing has a Stage 1 that did so.
    """
    whole, arm = arms
    source, pool = context.model_pool(whole), taken.model_pool(arm)
    indices = range(context.seeds)
    entries = [entry_of(configured(taken.config, arm), index) for index in indices]
    pool.add(entries)
    known = {trial.number for trial in pool.record.trials(1)}
    there = [entry_of(configured(context.config, whole), index) for index in indices]
    ended = zip(source.trials(1, there), source.trials(stage, there), strict=True)
    for entry, (first, given) in zip(entries, ended, strict=True):
        number = pool.entries.index(entry)
        if number in known:
            continue
        trial = TrialRecord(
            number=number, stage=1, attempt=1, params=dict(entry.params[1]), seed=0, state="diverged", ended=now()
        )
        if first is None or given is None or given.checkpoint is None:
            trial.error = f"stage {stage} on {context.store.info.name} has no model under this seed"
        else:
            folder = pool.record.finalist_folder(number)
            digest = export_weights(
                source.record.at(given.checkpoint), folder / "model.safetensors", sha256=given.checkpoint_sha256
            )
            trial.state, trial.curve, trial.seed = "complete", first.curve, first.seed
            pool.record.write_finalist(trial, digest)
            trial.checkpoint, trial.checkpoint_sha256 = f"finalists/{number:04d}/model.safetensors", digest
            trial.notes = [f"trained on {context.store.info.name}, the weights after stage {stage}"]
        # Last: where it is, the weights are.
        pool.record.write_trial(trial)


def _zero_shot(
    context: ExperimentContext, models: Sequence[Model], here: DatasetStore, command: str
) -> list[tuple[Model, NDArray[np.float64]]]:
    """The scores [N] of each model of there on the test split of here; reading it is noted."""
    names = [str(model.place).removeprefix(f"{context.record.place}/") for model in models]
    note_test_read(context.record.place / "best", f"reproduce {command}", names)
    table = here.read("test")
    use_deterministic_torch(context.config.search.cpus_per_worker)
    scores = []
    for model in models:
        with model.place.reading_folder() as folder:
            score_N, _ = score_on(load_model(folder), table, here.info, fit=True)
        scores.append((model, score_N))
    return scores


def _printed(there: str, here: str) -> Mapping[str, Mapping[str, float]] | None:
    """The paper's figures, which are those from MOSEI to MOSI."""
    return paper.TRANSFER.get(here) if there == "mosei" else None
