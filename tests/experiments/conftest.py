"""Fixtures of the experiments' tests: copies of the stored search, contexts on them, and models."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import commands
import numpy as np
import pyarrow as pa
import pytest

from grcf_ray.data.schema import TableInfo, conform
from grcf_ray.data.store import write_store
from grcf_ray.experiments.arms import figures
from grcf_ray.experiments.context import ExperimentContext

if TYPE_CHECKING:
    from grcf_ray.data.features import Features
    from grcf_ray.data.store import DatasetStore
    from grcf_ray.experiments.model_pool import Arm
    from grcf_ray.search.events import Event

STORED = Path(__file__).parents[1] / "stored" / "run-2"
MakeContext = Callable[..., "ExperimentContext"]


class FakeContext(SimpleNamespace):
    """The given parts of a context; it looks up the paper's figures as a real context does."""

    printed = ExperimentContext.printed
    printed_results = ExperimentContext.printed_results
    is_grcf = ExperimentContext.is_grcf


class StartedTrials(list[str]):
    """A listener that lists the trials that start, as stage/number."""

    def __call__(self, event: Event) -> None:
        from grcf_ray.search.events import TrialStarted

        if isinstance(event, TrialStarted):
            self.append(f"{event.trial.stage}/{event.trial.number}")


@pytest.fixture(scope="session")
def copy_run(tiny_backbone: Path, tiny_store: DatasetStore) -> Callable[[Path], Path]:
    """Return a function that copies the stored search into a folder, with stages of one epoch."""

    def copy(folder: Path) -> Path:
        shutil.copytree(STORED, folder)
        for path in folder.rglob("*.json"):
            text = path.read_text().replace("{backbone}", str(tiny_backbone))
            path.write_text(text.replace("{data}", str(tiny_store.folder)))
        run = json.loads((folder / "run.json").read_text())
        for settings in (run["settings"], run["space"]["fixed"]):
            settings |= {"stage1.epochs": 1, "stage2.epochs": 1}
        (folder / "run.json").write_text(json.dumps(run))
        return folder

    return copy


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the bootstrap's intervals from a few draws, to save time."""
    monkeypatch.setattr("grcf_ray.statistics.RESAMPLES", 100)


@pytest.fixture
def fresh(copy_run: Callable[[Path], Path], tmp_path: Path) -> Path:
    """Return a copy of the search for one test."""
    return copy_run(tmp_path / "tiny")


@pytest.fixture(scope="session")
def context_on(tiny_store: DatasetStore) -> MakeContext:
    """Return a maker of contexts on a run, with two seeds by default."""
    from grcf_ray.search.record import RunRecord
    from grcf_ray.storage import storage_path

    def make(folder: Path, **more: Any) -> ExperimentContext:
        return ExperimentContext(
            RunRecord(storage_path(folder)), tiny_store, **{"seeds": 2, "command": "again", **more}
        )

    return make


@pytest.fixture
def make_context(context_on: MakeContext, fresh: Path) -> MakeContext:
    """Return a maker of contexts on the test's copy."""
    return functools.partial(context_on, fresh)


class MadeUpModels:
    """Stands in for `ExperimentContext.models`: made-up figures, and the arms that an experiment asks for."""

    def __init__(self, context: ExperimentContext) -> None:
        self.context, self.arms = context, {}
        self.diverged: set[str] = set()
        """Arms of which no training finishes."""
        self.test = context.view.scored("test")

    def __call__(self, arms: Sequence[Arm], experiment: str, *, reference: bool = True) -> dict[str, list[Any]]:
        self.arms = {arm.name: arm for arm in arms}
        rng = np.random.default_rng(0)
        models = {arm.name: [self.model(index, rng) for index in range(2)] for arm in arms}
        return {name: [] if name in self.diverged else seeds for name, seeds in models.items()}

    def model(self, index: int, rng: np.random.Generator) -> Any:
        scored = dataclasses.replace(self.test, score_N=self.test.score_N + rng.normal(size=len(self.test.score_N)))
        metrics = figures(self.context, scored.score_N, scored.label_N)
        by_split = {"test": metrics, "valid": {name: value / 2 for name, value in metrics.items()}}
        return SimpleNamespace(index=index, metrics=by_split, scored=lambda split: scored)


@pytest.fixture
def untrained(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a context that trains nothing: `untrained.models` makes its figures up."""
    context = make_context()
    monkeypatch.setattr(context, "models", MadeUpModels(context))
    return context


@pytest.fixture(scope="session")
def other(tiny_table: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> DatasetStore:
    """The tiny data on [-6, 6], other words first, audio two values wider and vision one narrower."""
    columns: dict[str, Any] = {name: tiny_table[name].to_pylist() for name in tiny_table.column_names}
    columns["label"] = [2 * label for label in columns["label"]]
    columns["text"] = [f"the {text}" for text in columns["text"]]
    columns["audio"] = [rows and [[*row, 1.0, 2.0] for row in rows] for rows in columns["audio"]]
    columns["vision"] = [rows and [row[:-1] for row in rows] for rows in columns["vision"]]
    table = conform(pa.table(columns, schema=tiny_table.schema))
    info = TableInfo.describe(table, name="other", label_range=(-6, 6))
    return write_store(tmp_path_factory.mktemp("other") / "other", table, info)


class Trained(NamedTuple):
    """A run with the models of several arms under two seeds: the ablations, and the full model with all modalities."""

    folder: Path
    killed: Path
    """The run's files when the first trial of Stage 2 had ended: what a kill at that moment leaves."""
    arms: list[Arm]
    models: dict[str, list[Any]]
    started: list[str]
    """The trials that were trained for them, as stage/number."""

    def metrics(self, name: str) -> list[dict[str, float]]:
        """Return the test metrics of an arm's models."""
        return [dict(model.metrics["test"]) for model in self.models[name]]


@pytest.fixture(scope="session")
def trained(
    ray_session: None, context_on: MakeContext, copy_run: Any, tmp_path_factory: pytest.TempPathFactory
) -> Trained:
    """Train the arms once. Tests add models, and change none."""
    from grcf_ray.experiments.grids import ablation_arms
    from grcf_ray.experiments.model_pool import Arm
    from grcf_ray.search.events import TrialEnded

    folder, started = copy_run(tmp_path_factory.mktemp("trained") / "tiny"), StartedTrials()
    killed = tmp_path_factory.mktemp("killed") / "tiny"

    def copy_in_stage_2(event: Event) -> None:
        if isinstance(event, TrialEnded) and event.trial.stage == 2 and not killed.exists():
            # The lease of a dead process, which is free at once, has tests of its own.
            shutil.copytree(folder, killed, ignore=shutil.ignore_patterns("lock", "*lease.json*"))

    context = context_on(folder, listeners=(started, copy_in_stage_2))
    arms = [arm for arm in ablation_arms(context) if arm.name != "direct-mae"]
    arms.append(Arm("all-modalities", "all modalities", {"model.modalities": "all"}))
    return Trained(folder, killed, arms, context.models(arms, "margins"), list(started))


@pytest.fixture
def reproduce(capsys: pytest.CaptureFixture[str]) -> commands.Run:
    """Runs the command `reproduce`."""
    from grcf_ray.cli.reproduce import app

    capsys.readouterr()
    return commands.command(app, capsys)


@pytest.fixture
def result_of(reproduce: Callable[..., tuple[int, str, str]]) -> Callable[..., dict[str, Any]]:
    """Return a function that runs an experiment: the result that it prints, which is also written into the run."""

    def run(name: str, folder: Path, *more: object) -> dict[str, Any]:
        code, out, err = reproduce(name, "--from", folder, "--json", *more)
        assert code == 0, err
        printed: dict[str, Any] = json.loads(out)
        written = folder / "reproduce" / printed["name"]
        assert json.loads((written / "result.json").read_text()) == printed
        assert (written / "index.html").exists()
        for picture in printed["pictures"]:
            assert (written / f"figure-{picture}.png").read_bytes().startswith(b"\x89PNG")
            assert (written / f"figure-{picture}.pdf").read_bytes().startswith(b"%PDF")
        return printed

    return run


@pytest.fixture(scope="session")
def make_model(
    tiny_features: Features, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a maker of the folders of models with random weights."""
    from grcf_ray.config import build_config
    from grcf_ray.model.pretrained import load_tokenizer
    from grcf_ray.train.assemble import initial_model, select_modalities
    from grcf_ray.train.export import save_model

    @functools.cache
    def make(task: Any = "regression", modalities: str = "all", seed: int = 0) -> Path:
        settings = {"model.text_vector": "mean", "model.modalities": modalities, "model.attention_heads": 4}
        config = build_config({"model.backbone": str(tiny_backbone), **settings})
        features = select_modalities(dataclasses.replace(tiny_features, task=task), modalities)
        folder: Path = tmp_path_factory.mktemp("model")
        save_model(
            folder,
            initial_model(config.model, features, seed=seed),
            load_tokenizer(str(tiny_backbone)),
            features,
            config,
            label_range=(-3.0, 3.0),
            protocol="mosi",
            lowercase=False,
        )
        return folder

    return make
