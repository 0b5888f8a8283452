"""Save the finalists' predictions on the valid split, for the report."""

from __future__ import annotations

import numpy as np
import torch

from grcf_ray import console
from grcf_ray.data.features import LABEL_DECIMALS
from grcf_ray.data.store import DatasetStore
from grcf_ray.errors import DamagedError
from grcf_ray.search.stages import Search
from grcf_ray.search.winner import keep_predictions, trial_name
from grcf_ray.train.assemble import initial_model, select_modalities
from grcf_ray.train.checkpoint import load_weights
from grcf_ray.train.stage import predict


def keep_finalists(job: Search, store: DatasetStore) -> None:
    """Write `finalists/0007/predictions/valid.parquet` for each finalist without one, in the format of `best/`.

    Skips a finalist with damaged weights and prints its name.
    """
    record = job.record
    for number in record.info().finalists:
        folder = record.finalist_folder(int(number))
        place = folder / "predictions" / "valid.parquet"
        if place.exists():
            continue
        trial = record.trial(1, int(number))
        config = job.config_of(trial)
        seen = select_modalities(job.features, config.model.modalities)
        model = initial_model(config.model, seen, seed=trial.seed)
        try:
            load_weights(folder / "model.safetensors", model, sha256=record.read_finalist(int(number))["sha256"])
        except DamagedError as error:
            console.progress(f"Skipping the predictions of finalist {trial_name(trial)}: {error}")
            continue
        state_ND = np.empty((len(seen.valid), model.width), np.float32)
        score_N = predict(
            model,
            seen,
            seen.valid,
            device=torch.device("cpu"),
            token_budget=config.pairs.micro_batch_tokens,
            state_ND=state_ND,
        )
        table = store.read("valid")
        label_N = np.round(table["label"].to_numpy().astype(np.float64), LABEL_DECIMALS)
        center = 0.0 if seen.task == "classification" else seen.center
        keep_predictions(place, table, label_N, score_N + center, state_ND)
