"""Measure cost and memory against size: utterances, pairs an epoch, text length, recorded trials.

    python benchmarks/growth.py --dataset mosi --data DIR --out docs/performance

Runs on the CPU of a Linux machine, with one layer of the text encoder and random weights, in about 5 minutes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from optuna.trial import TrialState as OptunaState
from peak_memory import memory_row, memory_table
from scaling import Cost, Scaling, function_times, kernel_times
from study import run_study

from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.config import PairConfig, RunConfig, build_config, check_margins, flatten
from grcf_ray.data.batches import Batch, length_sorted, micro_batches
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.frames import FRAMES, Frames
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.pairs import Step, draw_pairs, epoch_steps, pairs_per_epoch
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.model.pretrained import (
    backbone_config,
    backbone_from_config,
    load_backbone,
    load_tokenizer,
)
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.failures import NodeHealth
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.search.searcher import OptunaSearcher, distributions, startup_trials
from grcf_ray.search.stages import config_of
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop, predict, stage_seed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UTTERANCES = (1_000, 3_000, 10_000, 30_000, 100_000)
PAIRS = (640, 1280, 2560, 5120)
LENGTHS = (8, 16, 32, 64, 128, 256)
STEPS = 16
"""Optimizer steps whose batches are timed, and that the process of the memory measurement takes."""
TOKENS = 2048
"""Subwords of a batch at every text length."""
TRIALS = (10, 30, 100, 300, 1000)
EPOCHS = 4
"""Epochs of a complete trial. A third of the trials are complete, the others were stopped after one epoch."""
MEAN_WORDS, MOST_WORDS, VOCABULARY = 12, 100, 2000
"""Approximate mean of the log-normal text lengths, the longest text, and the number of different words."""
WIDTHS, ROWS_PER_WORD = {"audio": 5, "vision": 20}, 2
VALID_SHARE = 10
"""One utterance in this many is for validation."""
LABEL_RANGE = (-3.0, 3.0)
_CPU = torch.device("cpu")


def growth_tables(setup: Setup) -> list[Table]:
    """Measure on synthetic utterances, then on the data set's own features and search space."""
    folder = setup.folder / "growth"
    config = _one_layer(setup.config, folder / "backbone")
    tables = _utterance_tables(setup, config, folder)
    features = prepare_features(setup.store, config, cache=folder / "own")
    tables += [_pairs_table(setup, config, features), _length_table(setup, config)]
    metrics = new_loop(features, config, _CPU, {"pairs.pairs_per_epoch": 64}).run_epoch()
    tables.append(trials_table(setup, metrics, folder))
    shutil.rmtree(folder)
    return tables


def _one_layer(config: RunConfig, folder: Path) -> RunConfig:
    """Save a backbone of one layer with its tokenizer; return the configuration with it and with small steps."""
    torch.manual_seed(0)
    backbone: Any = backbone_from_config({**backbone_config(config.model.backbone), "num_hidden_layers": 1})
    backbone.save_pretrained(folder)
    load_tokenizer(config.model.backbone).save_pretrained(folder)
    changes = {"model.backbone": str(folder), "model.frozen_layers": 0, "model.modalities": "all"}
    return build_config({**flatten(config), **changes, **SMALL_STEP})


def _utterance_tables(setup: Setup, config: RunConfig, folder: Path) -> list[Table]:
    scaling = Scaling(
        [
            Cost("import", "import", "utterance"),
            Cost("prepare", "features, first time", "utterance"),
            Cost("open", "features, again", "utterance"),
            Cost("pairs", "an epoch's pairs", "train utterance"),
            Cost("collate", f"batches of {STEPS} steps", "utterance in them"),
            Cost("predict", "validation", "valid utterance"),
        ],
        setup.repetitions,
        setup.say,
    )
    memory = [_measure_utterances(scaling, n, config, folder, setup.say) for n in UTTERANCES]
    pairs = pairs_per_epoch(dataclasses.replace(config.pairs, pairs_per_epoch=None), 1)
    return [
        Table(
            "growth utterances",
            "Cost against utterances, CPU seconds",
            (Column("name", "utterances"), *scaling.columns()),
            scaling.rows,
            (
                f"synthetic utterances of about {MEAN_WORDS} words, {ROWS_PER_WORD} rows of audio and of vision per "
                f"word, one in {VALID_SHARE} for validation; {pairs} pairs per training utterance and epoch",
                *scaling.notes(function_times),
            ),
        ),
        memory_table(memory, STEPS, config.pairs.micro_batch_tokens),
    ]


def _measure_utterances(
    scaling: Scaling, n: int, config: RunConfig, folder: Path, say: Callable[[str], None]
) -> dict[str, Any]:
    """Add a row of costs; return the row of memory."""
    say(f"writing {n:,} utterances")
    tokenizer = load_tokenizer(config.model.backbone)
    source = write_utterances(folder / f"{n}.parquet", n, tokenizer)
    scaling.begin(n)
    scaling.measure("import", n, lambda: import_utterances(source))
    store = DatasetStore.open(source.with_suffix(""))
    say(f"memory, {n:,}")
    cache, scratch = folder / f"features-{n}", folder / "scratch"
    memory = memory_row(n, store, config, cache, STEPS)
    prepare = functools.partial(build_features, store, tokenizer, config.features)
    scaling.measure("prepare", n, lambda _: prepare(cache=scratch), lambda: shutil.rmtree(scratch, ignore_errors=True))
    scaling.measure("open", n, lambda: prepare(cache=cache))
    features = prepare(cache=cache)
    full_epoch = dataclasses.replace(config.pairs, pairs_per_epoch=None)
    scaling.measure("pairs", len(features.train), lambda: collections.deque(_steps(features, full_epoch), maxlen=0))
    steps = list(_steps(features, dataclasses.replace(config.pairs, pairs_per_epoch=STEPS * _step_pairs(config))))
    scaling.measure("collate", sum(len(step.utterance_U) for step in steps), lambda: _collate(features, config, steps))
    scaling.measure("predict", len(features.valid), _predict, lambda: new_loop(features, config, _CPU, {}))
    return {**memory, "largest": _largest_batch(features, config.pairs.micro_batch_tokens)}


def _step_pairs(config: RunConfig) -> int:
    return config.pairs.pairs_per_group * config.pairs.groups_per_step


def _steps(features: Features, pairs: PairConfig) -> Iterator[Step]:
    n = len(features.train)
    return epoch_steps(draw_pairs(n, pairs_per_epoch(pairs, n), np.random.default_rng(0)), pairs)


def _collate(features: Features, config: RunConfig, steps: list[Step]) -> None:
    train = features.train
    for step in steps:
        micro_batches(features, train, length_sorted(train, step.utterance_U), config.pairs.micro_batch_tokens)


def _predict(loop: StageLoop) -> None:
    budget = loop.config.pairs.micro_batch_tokens
    predict(loop.model, loop.features, loop.features.valid, device=_CPU, token_budget=budget)


def _largest_batch(features: Features, budget: int) -> int:
    """Return the subwords of validation's largest batch."""
    split = features.valid
    order_N = length_sorted(split, np.arange(len(split)))
    return max(batch.tokens for batch in micro_batches(features, split, order_N, budget))


def _pairs_table(setup: Setup, config: RunConfig, features: Features) -> Table:
    scaling = Scaling([Cost("train", "training", "pair")], setup.repetitions, setup.say)
    for n in PAIRS:
        new = functools.partial(new_loop, features, config, _CPU, {"pairs.pairs_per_epoch": n})
        encoded = sum(len(step.utterance_U) for step in new().steps())
        scaling.begin(n, encoded=encoded, encoded_count=n, encoded_each=encoded / n)
        scaling.measure("train", n, _train, new)
    pairs = config.pairs
    return Table(
        "growth pairs",
        "Cost against pairs an epoch, CPU seconds",
        (
            Column("name", "pairs"),
            *scaling.columns(),
            Column("encoded", "utterances encoded", "{:,}"),
            Column("encoded_each", "utterances/pair", "{:.3f}"),
        ),
        scaling.rows,
        (
            f"{len(features.train):,} training utterances; steps of {pairs.groups_per_step} group(s) of "
            f"{pairs.pairs_per_group} pairs, with the optimizer, without validation",
            *scaling.notes(function_times),
        ),
    )


def _train(loop: StageLoop) -> None:
    for step in loop.steps():
        loop.take_step(step)


def _length_table(setup: Setup, config: RunConfig) -> Table:
    encoder = TextEncoder(load_backbone(config.model.backbone), config.model.text_vector).train()
    backbone: Any = encoder.backbone
    # The table's gradient has a fixed cost for each step, whatever the subwords.
    backbone.get_input_embeddings().requires_grad_(False)
    scaling = Scaling([Cost("encode", "forward and backward", "subword")], setup.repetitions, setup.say)
    # Some backbones number their positions from 2.
    longest = getattr(backbone.config, "max_position_embeddings", 512) - 2
    for length in (length for length in LENGTHS if length <= longest):
        texts = max(1, TOKENS // length)
        generator = torch.Generator().manual_seed(0)
        token_BL = torch.randint(5, backbone.config.vocab_size, (texts, length), generator=generator)
        batch = Batch(token_BL, torch.ones_like(token_BL, dtype=torch.bool), *[None] * 6, full=True)
        scaling.begin(length, texts=texts)
        scaling.measure("encode", texts * length, functools.partial(_encode, encoder, batch))
    return Table(
        "growth length",
        "Cost against text length, CPU seconds",
        (Column("name", "subwords of a text"), Column("texts", "texts"), *scaling.columns()),
        scaling.rows,
        (
            f"one layer, {TOKENS} subwords at a time, without the gradient of the word table",
            "attention compares all pairs of subwords of a text, so its share grows with the length",
            *scaling.notes(kernel_times),
        ),
    )


def _encode(encoder: TextEncoder, batch: Batch) -> None:
    encoder.zero_grad(set_to_none=True)
    (encoder(batch) @ torch.linspace(-1, 1, encoder.width)).square().mean().backward()


def write_utterances(path: Path, n: int, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write n utterances of words that the tokenizer knows, as Parquet; the first one is the test split."""
    rng = np.random.default_rng(n)
    words = np.array(known_words(tokenizer))
    length_N = np.clip(rng.lognormal(np.log(MEAN_WORDS), 0.7, n).astype(np.int64), 1, MOST_WORDS)
    word_T = words[rng.integers(len(words), size=length_N.sum())]
    columns: dict[str, Any] = {
        "id": [f"video{i // 10}[{i % 10}]" for i in range(n)],
        "split": ["test", *("valid" if i % VALID_SHARE == VALID_SHARE - 1 else "train" for i in range(1, n))],
        "text": [" ".join(part) for part in np.split(word_T, np.cumsum(length_N)[:-1])],
        "label": np.round(rng.uniform(*LABEL_RANGE, n), 1),
    }
    for name, width in WIDTHS.items():
        rows_N = ROWS_PER_WORD * length_N
        values = rng.standard_normal(rows_N.sum() * width, dtype=np.float32)
        columns[name] = Frames(rows_N, np.full(rows_N.sum(), width), values).to_arrow().cast(FRAMES)
    pq.write_table(pa.table(columns), path)
    return path


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return up to VOCABULARY words that are one subword each, in alphabetical order."""
    plain = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha())
    single = (word for word in plain if len(tokenizer.encode(word, add_special_tokens=False)) == 1)
    return list(itertools.islice(single, VOCABULARY)) or ["good", "bad"]


def import_utterances(source: Path) -> DatasetStore:
    """Import the Parquet file into the folder of the same name."""
    options = ImportOptions(dataset="growth", label_range=LABEL_RANGE)
    return write_store(source.with_suffix(""), *import_source(source, options))


def trials_table(setup: Setup, metrics: Mapping[str, Any], folder: Path) -> Table:
    """Measure on synthetic records. metrics: those of an epoch."""
    scaling = Scaling(
        [
            Cost("propose", "one proposal", "recorded trial"),
            Cost("resume", "resume", "recorded trial"),
            Cost("record", "one trial's record", "recorded trial"),
        ],
        setup.repetitions,
        setup.say,
    )
    for n in TRIALS:
        setup.say(f"writing {n:,} trials")
        record = RunRecord(storage_path(folder / f"trials-{n}"))
        record.write_run({"state": "running", "settings": flatten(setup.config)})
        for trial in _trials(setup, metrics, n):
            record.write_trial(trial)
        trials = record.trials(1)
        scaling.begin(n)
        scaling.measure("resume", n, functools.partial(_resume, setup, record))
        scaling.measure(
            "propose",
            n,
            lambda searcher: searcher.suggest("next"),
            functools.partial(_searcher, setup, trials),
        )
        scaling.measure(
            "record",
            n,
            functools.partial(_record_trial, setup, metrics, n),
            functools.partial(_callback, setup, record, trials),
        )
    return Table(
        "growth trials",
        "Cost of the driver against recorded trials, CPU seconds",
        (Column("name", "recorded trials"), *scaling.columns()),
        scaling.rows,
        (
            f"{len(setup.space.stage1)} searched settings, {EPOCHS} epochs of {len(metrics)} metrics; resume: read the "
            "record and rebuild the state of Optuna and ASHA; one trial's record: its launch, epochs and end, without "
            "the time of the disk",
            f"a proposal and a record take all earlier trials into account: {scaling.together('propose'):.1f} s and "
            f"{scaling.together('record'):.1f} s in total in a search of {scaling.rows[-1]['name']} trials",
            *scaling.rises(function_times),
            *scaling.notes(function_times),
        ),
    )


def _trials(setup: Setup, metrics: Mapping[str, Any], n: int) -> Iterator[TrialRecord]:
    """Yield trials with random parameters and values."""
    rng = np.random.default_rng(n)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n))
    space = distributions(setup.space.stage1)
    for number in range(n):
        asked = study.ask(space)
        study.tell(asked, state=OptunaState.FAIL)
        complete = number % 3 == 0
        yield TrialRecord(
            number=number,
            stage=1,
            attempt=1,
            params=asked.params,
            seed=stage_seed(n, number),
            state="complete" if complete else "pruned",
            curve=_curve(metrics, EPOCHS if complete else 1, rng.uniform(0.5, 0.8)),
            started=now(),
            ended=now(),
        )


def _curve(metrics: Mapping[str, Any], epochs: int, value: float) -> list[dict[str, Any]]:
    return [{**metrics, "epoch": epoch, "valid/pairwise_acc": value} for epoch in range(1, epochs + 1)]


def _searcher(setup: Setup, trials: Sequence[TrialRecord]) -> OptunaSearcher:
    info, budget = setup.store.info, len(trials) + 1
    return OptunaSearcher(
        distributions(setup.space.stage1),
        starts=[setup.space.start(1)],
        budget=budget,
        trials=trials,
        stage=1,
        epochs=EPOCHS,
        seed=setup.config.seed,
        n_startup_trials=startup_trials(budget),
        feasible=lambda params: not check_margins(setup.space.config(params), info.half_range, info.task),
        launch=lambda number, params: params,
    )


def _resume(setup: Setup, record: RunRecord) -> None:
    trials = record.trials(1)
    _searcher(setup, trials)
    build_scheduler(setup.config.search, stage=1, epochs=EPOCHS, trials=trials)


def _callback(setup: Setup, record: RunRecord, trials: list[TrialRecord]) -> RecordCallback:
    search: Any = SimpleNamespace(
        record=record,
        config=setup.config,
        protocol="mosi",
        seed=lambda stage, params, number: stage_seed(number),
        epochs=lambda stage: EPOCHS,
        config_of=lambda trial: config_of(setup.space, record, trial),
        tell=lambda event: None,
        health=NodeHealth(),
    )
    return RecordCallback(search, 1, trials, choices=setup.config.search.finalists)


def _record_trial(setup: Setup, metrics: Mapping[str, Any], number: int, callback: RecordCallback) -> None:
    """Launch a trial of medium value, report each epoch, and end it."""
    curve, trial = _curve(metrics, EPOCHS, 0.6), SimpleNamespace(config={"number": number})
    callback.launch(number, setup.space.start(1))
    for epoch in range(1, EPOCHS + 1):
        result = {
            "notes": [],
            "checkpoint": "best-00001.safetensors",
            "checkpoint_sha256": "0" * 64,
            "curve": curve[:epoch],
            "done": epoch == EPOCHS,
        }
        callback.on_trial_result(epoch, [], trial, result)


if __name__ == "__main__":
    run_study("growth", __file__, growth_tables)
