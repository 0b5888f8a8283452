"""Table 9: transfer of models from one data set to another.

"There" is the run's data set, "here" the target of the transfer. Models that are trained here lie below the run, in
`reproduce/transfer/<here>/<row>/<shape>/`, each folder laid out like a run. A row that starts from models of there has
their weights as the finalists of a Stage 1 that was trained there.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pyarrow as pa

from grcf_ray.config import RunConfig, build_config, flatten
from grcf_ray.console import sentence
from grcf_ray.data.schema import TableInfo
from grcf_ray.data.store import DatasetStore, find_data
from grcf_ray.errors import ConfigError
from grcf_ray.experiments.arms import Measured, Rescored, arm_result
from grcf_ray.experiments.context import ExperimentContext
from grcf_ray.experiments.model_pool import Arm, configured, entries_of
from grcf_ray.experiments.paper import TABLES
from grcf_ray.experiments.result import ExperimentResult
from grcf_ray.search.record import TrialRecord, now
from grcf_ray.search.space import IN_LABEL_UNITS
from grcf_ray.search.transfer import fit_features, score_on
from grcf_ray.train.checkpoint import export_weights
from grcf_ray.train.export import SavedModel

_TITLES = {
    "in-domain": "In-domain: both stages here",
    "zero-shot": "Zero-shot: both stages there",
    "stage1-there": "Transfer v1: Stage 1 there, Stage 2 here",
    "both-there": "Transfer v2: both stages there, Stage 2 here",
}


def transfer(context: ExperimentContext) -> ExperimentResult:
    """Reproduce Table 9: the run's models on another data set, unchanged and after Stage 2 on it."""
    here = _target(context)
    there_name, here_name = context.store.info.name, here.info.name
    settings, notes = _shared_modalities(context, here.info)
    place = context.record.place / "reproduce" / "transfer" / f"{here_name}-{here.info.fingerprint[:8]}"
    config = _rescaled(context, here.info)
    whole = Arm("there", f"Both stages on {there_name}", settings)
    there = context.models([whole], "transfer")[whole.name]
    fitted = Fitted.of(here, there[0].load())

    arms = {name: Arm(name, title, settings) for name, title in _TITLES.items()}
    command = f"transfer --onto {here_name}"
    target = context.on(here, config, place / "in-domain")
    in_domain = target.models([arms["in-domain"]], command)["in-domain"]
    models: dict[str, Sequence[Measured]] = {"in-domain": in_domain}
    stages: Mapping[str, Literal[1, 2]] = {"stage1-there": 1, "both-there": 2}
    for name, stage in stages.items():
        receiver = context.on(fitted, config, place / name)
        with receiver.held():
            _hand_over(context, receiver, whole, arms[name], stage)
        models |= receiver.models([arms[name]], command)
    context.note_test_read(there, command)
    test = here.read("test")
    models["zero-shot"] = [
        Rescored(target, model.index, in_domain[0].scored("test"), score_on(model.load(), test, here.info, fit=True)[0])
        for model in there
    ]
    if here.info.label_range != context.store.info.label_range:
        notes.append("Label ranges differ: scores, margins and the model's reach are scaled from the one to the other.")
    return arm_result(
        target,
        list(arms.values()),
        models,
        # The paper prints the transfer from MOSEI to MOSI alone.
        TABLES["transfer"].get(here_name) if there_name == "mosei" else None,
        name=f"transfer-{here_name}",
        title=f"From {there_name} to {here_name}, measured on {here_name}",
        notes=[
            f"Measured on {here_name}, fingerprint {here.info.fingerprint}.",
            *notes,
            *map(sentence, fitted.notes()),
            f"Every row has the parameters of the winner on {there_name}; a search on {here_name} may find better "
            "parameters.",
            f"Zero-shot standardises the features by the training rows of {there_name}. Rows with Stage 2 here "
            f"standardise them by the training rows of {here_name}.",
        ],
    )


@dataclasses.dataclass(frozen=True)
class Fitted(DatasetStore):
    """A data set whose audio and vision are cut or padded to the widths of a model from another data set."""

    saved: SavedModel

    @classmethod
    def of(cls, store: DatasetStore, saved: SavedModel) -> Fitted:
        """Return the store, fitted to this model."""
        dims = saved.model.modality_dims
        fills = {name: s.mean_A.tolist() for name, s in saved.standardisers.items()}
        text = f"{store.info.fingerprint} {sorted(dims.items())} {sorted(fills.items())}"
        info = dataclasses.replace(
            store.info,
            audio_dim=dims.get("audio", store.info.audio_dim),
            vision_dim=dims.get("vision", store.info.vision_dim),
            # The key of the feature cache.
            fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        )
        return cls(store.folder, info, store.files, saved)

    def read(self, split: str) -> pa.Table:
        """Return the fitted rows of one split."""
        return fit_features(super().read(split), self.info, self.saved, asked=True)[0]

    def notes(self) -> list[str]:
        """Return notes on what fitting changes."""
        return fit_features(super().read("train").slice(0, 1), self.info, self.saved, asked=True)[1]


def _target(context: ExperimentContext) -> DatasetStore:
    if context.options.onto is None:
        raise ConfigError("transfer applies the run's models to another data set; name it: --onto NAME")
    if not (context.config.stage1.epochs and context.config.stage2.epochs):
        raise ConfigError("transfer needs models of both stages; this run has one stage")
    here = find_data(context.options.onto, context.options.onto_data)
    if here.info.fingerprint == context.store.info.fingerprint:
        raise ConfigError(f"--onto {here.info.name}: the run was searched on these very data; name other data")
    if here.info.task != context.store.info.task:
        raise ConfigError(
            f"--onto {here.info.name}: the task of its labels is {here.info.task}, and the run's is "
            f"{context.store.info.task}; name a data set of the same task"
        )
    return here


def _shared_modalities(context: ExperimentContext, here: TableInfo) -> tuple[dict[str, Any], list[str]]:
    """Return the setting by which all rows see the modalities of both data sets, and notes on it."""
    there = context.store.info
    seen = context.config.model.modalities
    sees = [name for name in there.dims if seen == "all" or name in seen]
    shared = [name for name in sees if name in here.dims]
    notes = []
    if not context.config.model.sees_text:
        if not shared:
            raise ConfigError(f"the winner sees {seen} alone, and {here.name} lacks it; name other data: --onto NAME")
        wanted = "+".join(shared)
    else:
        wanted = "all" if len(shared) == 2 else "+".join(["text", *shared])
        if not shared:
            notes.append("Every row is of text alone: the winner sees no other modality that both data sets have.")
        elif shared != sees:
            notes.append(f"Every row is of text and {shared[0]}, the modalities of both data sets.")
        if seen == "all" and there.dims.keys() == here.dims.keys():
            wanted = seen
    return ({"model.modalities": wanted} if wanted != seen else {}), notes


def _rescaled(context: ExperimentContext, here: TableInfo) -> RunConfig:
    """Return the winner's configuration with its margins in the label units of here."""
    values = flatten(context.config)
    ratio = here.half_range / context.store.info.half_range
    if here.task == "regression":
        values |= {path: values[path] * ratio**power for path, power in IN_LABEL_UNITS.items()}
    return build_config(values, source=f"the winner's configuration on {here.name}")


def _hand_over(
    context: ExperimentContext, receiver: ExperimentContext, whole: Arm, arm: Arm, stage: Literal[1, 2]
) -> None:
    """Record the weights after a stage of there as completed Stage 1 trials of `receiver`, the context of here.

    whole: the arm of there. arm: the arm of here. A failed training there counts as a failed Stage 1 here.
    """
    source, pool = context.model_pool(whole), receiver.model_pool(arm)
    indices = range(context.seeds)
    entries = entries_of(configured(receiver.config, arm), indices)
    pool.add(entries)
    known = {trial.number for trial in pool.record.trials(1)}
    there = entries_of(configured(context.config, whole), indices)
    ended = zip(source.trials(1, there), source.trials(stage, there), strict=True)
    for entry, (first, given) in zip(entries, ended, strict=True):
        number = pool.entries.index(entry)
        if number in known:
            continue
        trial = TrialRecord(
            number=number, stage=1, attempt=1, params=dict(entry.stage1), seed=0, state="diverged", ended=now()
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
        # Last, so that a trial on record always has its weights.
        pool.record.write_trial(trial)
