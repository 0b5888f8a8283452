"""Cost and memory against size: where they are straight lines, and where not, why.

All on the CPU, with one layer of the text encoder and random weights. The test split is not read.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import multiprocessing
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

from grcf_ray.bench.resident import STATUS, Watch, resident
from grcf_ray.bench.scaling import Cost, Lines, kernel_times, own_times, ready
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.config import PairConfig, RunConfig, build_config, check_margins, flatten
from grcf_ray.data.batches import Batch, length_sorted, micro_batches
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.frames import FRAMES, Frames
from grcf_ray.data.importers import ImportOptions, import_source
from grcf_ray.data.pairs import Step, draw_pairs, epoch_steps, pairs_per_epoch
from grcf_ray.data.store import DatasetStore, write_store
from grcf_ray.model.pretrained import backbone_config, backbone_from_config, load_backbone, load_tokenizer
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.search.callback import RecordCallback
from grcf_ray.search.record import RunRecord, TrialRecord, now
from grcf_ray.search.scheduler import build_scheduler
from grcf_ray.search.searcher import OptunaSearcher, distributions, startup_trials
from grcf_ray.search.stages import config_of
from grcf_ray.storage import storage_path
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop, predict, stage_seed, use_deterministic_torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from grcf_ray.bench.setup import Setup

UTTERANCES = (1_000, 3_000, 10_000, 30_000, 100_000)
PAIRS = (640, 1280, 2560, 5120)
LENGTHS = (8, 16, 32, 64, 128, 256)
TRIALS = (10, 30, 100, 300, 1000)

MEAN_WORDS, MOST_WORDS, VOCABULARY = 12, 100, 2000
"""Of the texts: about the mean of their log-normal lengths, the longest, and different words."""
WIDTHS, ROWS_A_WORD = {"audio": 5, "vision": 20}, 2
VALID_SHARE = 10
"""One utterance in so many is for validation."""
LABEL_RANGE = (-3.0, 3.0)
STEPS = 16
"""Optimizer steps whose batches are made, and that a process takes whose memory is measured."""
TOKENS = 2048
"""Subwords of a batch, whatever the length of its texts."""
EPOCHS = 4
"""Of a recorded trial; a third of them are complete, the others were stopped after one."""
_CPU = torch.device("cpu")


def growth_tables(setup: Setup) -> list[Table]:
    """Cost against utterances, pairs an epoch, text length and recorded trials, and memory against utterances."""
    folder = setup.folder / "growth"
    config = _one_layer(setup.config, folder / "backbone")
    tables = _utterance_tables(setup, config, folder)
    features = prepare_features(setup.store, config, cache=folder / "own")
    tables += [_pairs_table(setup, config, features), _length_table(setup, config)]
    metrics = new_loop(features, config, _CPU, {"pairs.pairs_per_epoch": 64}).run_epoch()
    tables.append(_trials_table(setup, metrics, folder))
    shutil.rmtree(folder)
    return tables


def _one_layer(config: RunConfig, folder: Path) -> RunConfig:
    """The configuration with a backbone of one layer, saved with its tokenizer, and small steps."""
    torch.manual_seed(0)
    described = {**backbone_config(config.model.backbone), "num_hidden_layers": 1}
    backbone: Any = backbone_from_config(described)
    backbone.save_pretrained(folder)
    load_tokenizer(config.model.backbone).save_pretrained(folder)
    changes = {"model.backbone": str(folder), "model.frozen_layers": 0, "model.modalities": "all"}
    return build_config({**flatten(config), **changes, **SMALL_STEP})


def _utterance_tables(setup: Setup, config: RunConfig, folder: Path) -> list[Table]:
    tokenizer = load_tokenizer(config.model.backbone)
    lines = Lines(
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
    memory = [_measure_utterances(lines, n, config, tokenizer, folder, setup.say) for n in UTTERANCES]
    pairs = pairs_per_epoch(dataclasses.replace(config.pairs, pairs_per_epoch=None), 1)
    return [
        Table(
            "growth utterances",
            "Cost against utterances, CPU seconds",
            (Column("name", "utterances"), *lines.columns()),
            lines.rows,
            (
                f"synthetic utterances of {MEAN_WORDS} words or so, {ROWS_A_WORD} rows of audio and of vision a word, "
                f"one in {VALID_SHARE} for validation; {pairs} pairs a training utterance an epoch",
                *lines.notes(own_times),
            ),
        ),
        _memory_table(memory, config.pairs.micro_batch_tokens),
    ]


def _measure_utterances(
    lines: Lines,
    n: int,
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """A row of costs; the row of memory."""
    say(f"{n:,} utterances are written")
    source = _write_utterances(folder / f"{n}.parquet", n, tokenizer)
    lines.begin(n)
    lines.measure("import", n, ready(functools.partial(_import, source)))
    store = DatasetStore.open(source.with_suffix(""))
    say(f"memory, {n:,}")
    cache = folder / f"features-{n}"
    memory = _memory_row(n, store, config, cache)
    prepare = functools.partial(build_features, store, tokenizer, config.features)
    lines.measure("prepare", n, functools.partial(_fresh, prepare, folder / "scratch"))
    lines.measure("open", n, ready(functools.partial(prepare, cache=cache)))
    features = prepare(cache=cache)
    every = dataclasses.replace(config.pairs, pairs_per_epoch=None)
    lines.measure("pairs", len(features.train), ready(functools.partial(_draw, features, every)))
    # Of so many steps, however many utterances there are.
    few = dataclasses.replace(
        config.pairs, pairs_per_epoch=STEPS * config.pairs.pairs_per_group * config.pairs.groups_per_step
    )
    count = sum(len(step.utterance_U) for step in _steps(features, few))
    lines.measure("collate", count, functools.partial(_collating, features, few))
    lines.measure("predict", len(features.valid), functools.partial(_predicting, features, config))
    return {**memory, "largest": _largest(features, config.pairs.micro_batch_tokens)}


def _write_utterances(path: Path, n: int, tokenizer: PreTrainedTokenizerBase) -> Path:
    """A table of n utterances, of words that the tokenizer knows, as Parquet; the first one is the test split."""
    rng = np.random.default_rng(n)
    words = np.array(_known_words(tokenizer))
    length_N = np.clip(rng.lognormal(np.log(MEAN_WORDS), 0.7, n).astype(np.int64), 1, MOST_WORDS)
    word_T = words[rng.integers(len(words), size=length_N.sum())]
    columns: dict[str, Any] = {
        "id": [f"video{i // 10}[{i % 10}]" for i in range(n)],
        "split": ["test", *("valid" if i % VALID_SHARE == VALID_SHARE - 1 else "train" for i in range(1, n))],
        "text": [" ".join(part) for part in np.split(word_T, np.cumsum(length_N)[:-1])],
        "label": np.round(rng.uniform(*LABEL_RANGE, n), 1),
    }
    for name, width in WIDTHS.items():
        rows_N = ROWS_A_WORD * length_N
        values = rng.standard_normal(rows_N.sum() * width, dtype=np.float32)
        columns[name] = Frames(rows_N, np.full(rows_N.sum(), width), values).to_arrow().cast(FRAMES)
    pq.write_table(pa.table(columns), path)
    return path


def _known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Words that are a subword each, as far as there are any; alphabetical."""
    plain = sorted(token for token in tokenizer.get_vocab() if token.isascii() and token.isalpha())
    single = (word for word in plain if len(tokenizer.encode(word, add_special_tokens=False)) == 1)
    return list(itertools.islice(single, VOCABULARY)) or ["good", "bad"]


def _import(source: Path) -> DatasetStore:
    options = ImportOptions(dataset="growth", label_range=LABEL_RANGE)
    return write_store(source.with_suffix(""), *import_source(source, options))


def _fresh(prepare: Callable[..., Features], folder: Path) -> Callable[[], Features]:
    """Features with nothing in the cache."""
    shutil.rmtree(folder, ignore_errors=True)
    return functools.partial(prepare, cache=folder)


def _steps(features: Features, pairs: PairConfig) -> Iterator[Step]:
    n = len(features.train)
    return epoch_steps(draw_pairs(n, pairs_per_epoch(pairs, n), np.random.default_rng(0)), pairs)


def _draw(features: Features, pairs: PairConfig) -> None:
    collections.deque(_steps(features, pairs), maxlen=0)


def _collating(features: Features, pairs: PairConfig) -> Callable[[], None]:
    """The batches of an epoch's steps, as a stage loop makes them."""
    steps, train = list(_steps(features, pairs)), features.train

    def run() -> None:
        for step in steps:
            micro_batches(features, train, length_sorted(train, step.utterance_U), pairs.micro_batch_tokens)

    return run


def _predicting(features: Features, config: RunConfig) -> Callable[[], object]:
    return functools.partial(_predict, new_loop(features, config, _CPU, {}))


def _predict(loop: StageLoop) -> None:
    """What validation scores."""
    split, budget = loop.features.valid, loop.config.pairs.micro_batch_tokens
    predict(loop.model, loop.features, split, device=_CPU, token_budget=budget)


def _largest(features: Features, budget: int) -> int:
    """Subwords of validation's largest batch."""
    split = features.valid
    order_N = length_sorted(split, np.arange(len(split)))
    return max(batch.tokens for batch in micro_batches(features, split, order_N, budget))


def _memory_row(n: int, store: DatasetStore, config: RunConfig, cache: Path) -> dict[str, Any]:
    """What preparing and training hold at most, each in a process of its own; the features stay in the cache."""
    parts: dict[str, int] = {}
    for work in (_prepare_watched, _train_watched) if STATUS.exists() else ():
        # A new process: what another one has freed stays in its pages.
        with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            given = (str(store.folder), flatten(config), str(cache), torch.get_num_threads(), STEPS)
            parts |= pool.submit(work, *given).result()
    parts["disk"] = sum(path.stat().st_size for path in cache.rglob("*.npy"))
    program = parts.pop("program", None)
    row: dict[str, Any] = {"name": f"{n:,}", "size": n, "program": program and program / 1e6}
    for key, size in parts.items():
        row |= {key: size / 1e6, f"{key}_count": n, f"{key}_each": size / n / 1e3}
    return row


def _memory_table(rows: Sequence[Mapping[str, Any]], budget: int) -> Table:
    parts = {
        "disk": "features",
        "prepared": "to prepare",
        "opened": "opened",
        "validated": "validation",
        "stepped": f"{STEPS} steps",
        "mapped": "mapped",
    }
    first, last = rows[0], rows[-1]
    grown = [
        f"{title} {1e3 * (last[key] - first[key]) / (last['size'] - first['size']):.2f}"
        for key, title in parts.items()
        if key in last and last is not first
    ]
    return Table(
        "growth memory",
        "Memory against utterances, MB",
        (
            Column("name", "utterances"),
            Column("program", "program, MB", "{:,.1f}"),
            *(
                column
                for key, title in parts.items()
                for column in (Column(key, f"{title}, MB", "{:,.1f}"), Column(f"{key}_each", "KB/utterance", "{:,.2f}"))
            ),
        ),
        rows,
        (
            "features: bytes on the disk; the others: what a process takes beyond the program with its imports, "
            "each in a new one for preparing and for training",
            "to prepare, opened, validation, steps: private memory (RssAnon), the most while it ran; mapped: pages of "
            "files at the end, which the system takes back when it wants them",
            f"validation's largest batch has {first['largest']:,} subwords at {first['name']} utterances and "
            f"{last['largest']:,} at {last['name']}, of {budget:,} at most: few utterances have few of like length",
            *([f"KB that one more utterance takes, first size to last: {', '.join(grown)}"] if grown else []),
        ),
    )


def _prepare_watched(store: str, settings: dict[str, Any], cache: str, threads: int, steps: int) -> dict[str, int]:
    config = _settled(settings, threads)
    tokenizer = load_tokenizer(config.model.backbone)
    with Watch() as watch:
        build_features(DatasetStore.open(Path(store)), tokenizer, config.features, cache=Path(cache))
        return {"prepared": watch.most()}


def _train_watched(store: str, settings: dict[str, Any], cache: str, threads: int, steps: int) -> dict[str, int]:
    config = _settled(settings, threads)
    with Watch() as watch:
        features = prepare_features(DatasetStore.open(Path(store)), config, cache=Path(cache))
        opened = watch.most()
        loop = new_loop(features, config, _CPU, {})
        # Before the steps: what they free would hide what it takes.
        _predict(loop)
        validated = watch.most()
        for step in itertools.islice(loop.steps(), steps):
            loop.take_step(step)
        stepped = watch.most()
    return {
        "program": watch.program["RssAnon"],
        "opened": opened,
        "validated": validated,
        "stepped": stepped,
        "mapped": resident()["RssFile"] - watch.program["RssFile"],
    }


def _settled(settings: dict[str, Any], threads: int) -> RunConfig:
    use_deterministic_torch(threads)
    return build_config(settings)


def _pairs_table(setup: Setup, config: RunConfig, features: Features) -> Table:
    lines = Lines([Cost("train", "training", "pair")], setup.repetitions, setup.say)
    for n in PAIRS:
        # Kept by nobody: a large model's weights and moments would be in memory once for each size.
        new = functools.partial(new_loop, features, config, _CPU, {"pairs.pairs_per_epoch": n})
        encoded = sum(len(step.utterance_U) for step in new().steps())
        lines.begin(n, encoded=encoded, encoded_count=n, encoded_each=encoded / n)
        lines.measure("train", n, functools.partial(_training, new))
    pairs = config.pairs
    return Table(
        "growth pairs",
        "Cost against pairs an epoch, CPU seconds",
        (
            Column("name", "pairs"),
            *lines.columns(),
            Column("encoded", "utterances encoded", "{:,}"),
            Column("encoded_each", "utterances/pair", "{:.3f}"),
        ),
        lines.rows,
        (
            f"{len(features.train):,} training utterances; steps of {pairs.groups_per_step} group(s) of "
            f"{pairs.pairs_per_group} pairs, with the optimizer; validation is not among it",
            *lines.notes(own_times),
        ),
    )


def _training(new: Callable[[], StageLoop]) -> Callable[[], None]:
    return functools.partial(_train, new())


def _train(loop: StageLoop) -> None:
    """The steps of an epoch."""
    for step in loop.steps():
        loop.take_step(step)


def _length_table(setup: Setup, config: RunConfig) -> Table:
    encoder = TextEncoder(load_backbone(config.model.backbone), config.model.text_vector).train()
    # Its gradient, as large as the whole table, is a step's and no subword's.
    backbone: Any = encoder.backbone
    backbone.get_input_embeddings().requires_grad_(False)
    described = backbone.config
    lines = Lines([Cost("encode", "forward and backward", "subword")], setup.repetitions, setup.say)
    # Some number their positions from 2.
    for length in (length for length in LENGTHS if length <= getattr(described, "max_position_embeddings", 512) - 2):
        texts = max(1, TOKENS // length)
        token_BL = torch.randint(5, described.vocab_size, (texts, length), generator=torch.Generator().manual_seed(0))
        mask_BL = torch.ones_like(token_BL, dtype=torch.bool)
        batch = Batch(token_BL, mask_BL, *[None] * 6)
        lines.begin(length, texts=texts)
        lines.measure("encode", texts * length, ready(functools.partial(_encode, encoder, batch)))
    return Table(
        "growth length",
        "Cost against text length, CPU seconds",
        (Column("name", "subwords of a text"), Column("texts", "texts"), *lines.columns()),
        lines.rows,
        (
            f"one layer, {TOKENS} subwords at a time, the gradient of the word table aside",
            "attention compares every two subwords of a text, so that its part grows with the length",
            *lines.notes(kernel_times),
        ),
    )


def _encode(encoder: TextEncoder, batch: Batch) -> None:
    encoder.zero_grad(set_to_none=True)
    (encoder(batch) @ torch.linspace(-1, 1, encoder.width)).square().mean().backward()


def _trials_table(setup: Setup, metrics: Mapping[str, Any], folder: Path) -> Table:
    lines = Lines(
        [
            Cost("propose", "one proposal", "recorded trial"),
            Cost("resume", "resume", "recorded trial"),
            Cost("record", "one trial's record", "recorded trial"),
        ],
        setup.repetitions,
        setup.say,
    )
    settings = flatten(setup.config)
    for n in TRIALS:
        setup.say(f"{n:,} trials are written")
        record = RunRecord(storage_path(folder / f"trials-{n}"))
        record.write_run({"state": "running", "settings": settings})
        for trial in _trials(setup, metrics, n):
            record.write_trial(trial)
        lines.begin(n)
        lines.measure("resume", n, functools.partial(_resuming, setup, record))
        lines.measure("propose", n, functools.partial(_proposing, setup, record.trials(1)))
        lines.measure("record", n, functools.partial(_recording, setup, record, metrics, n))
    return Table(
        "growth trials",
        "Cost of the driver against recorded trials, CPU seconds",
        (Column("name", "recorded trials"), *lines.columns()),
        lines.rows,
        (
            f"{len(setup.space.stage1)} searched settings, {EPOCHS} epochs of {len(metrics)} figures; resume: the "
            f"record read, Optuna and ASHA told of it; one trial's record: its launch, epochs and end, without the "
            f"time that the disk takes",
            f"each proposal and each record looks at all trials before it: {lines.together('propose'):.1f} s and "
            f"{lines.together('record'):.1f} s together in a search of {lines.rows[-1]['name']} trials",
            *lines.rises(own_times),
            *lines.notes(own_times),
        ),
    )


def _trials(setup: Setup, metrics: Mapping[str, Any], n: int) -> Iterator[TrialRecord]:
    """Trials with random parameters and values."""
    rng = np.random.default_rng(n)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=n))
    space = distributions(setup.space.stage1)
    for number in range(n):
        asked = random.ask(space)
        random.tell(asked, state=OptunaState.FAIL)
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
    """A curve with all that an epoch has to tell."""
    return [{**metrics, "epoch": epoch, "valid/pairwise_acc": value} for epoch in range(1, epochs + 1)]


def _proposals(setup: Setup, trials: Sequence[TrialRecord]) -> OptunaSearcher:
    info, budget = setup.store.info, len(trials) + 1
    half_range = (info.label_range[1] - info.label_range[0]) / 2
    return OptunaSearcher(
        distributions(setup.space.stage1),
        starts=[setup.space.start(1)],
        budget=budget,
        trials=trials,
        stage=1,
        epochs=EPOCHS,
        seed=setup.config.seed,
        n_startup_trials=startup_trials(budget),
        feasible=lambda params: not check_margins(setup.space.config(params), half_range, info.task),
        launch=lambda number, params: params,
    )


def _proposing(setup: Setup, trials: Sequence[TrialRecord]) -> Callable[[], object]:
    return functools.partial(_proposals(setup, trials).suggest, "next")


def _resuming(setup: Setup, record: RunRecord) -> Callable[[], None]:
    def run() -> None:
        trials = record.trials(1)
        _proposals(setup, trials)
        build_scheduler(setup.config.search, stage=1, epochs=EPOCHS, trials=trials)

    return run


def _recording(setup: Setup, record: RunRecord, metrics: Mapping[str, Any], number: int) -> Callable[[], None]:
    """A trial of middling value: launched, each epoch reported, ended."""
    keeper = RecordCallback(
        record,
        1,
        trials=[trial for trial in record.trials(1) if trial.number < number],
        config=setup.config,
        protocol="mosi",
        seed_of=lambda params, number: stage_seed(number),
        epochs=EPOCHS,
        choices=setup.config.search.finalists,
        config_of=lambda trial: config_of(setup.space, record, trial),
        tell=lambda event: None,
    )
    curve, ours = _curve(metrics, EPOCHS, 0.6), SimpleNamespace(config={"number": number})
    figures = {"notes": [], "checkpoint_sha256": "0" * 64}

    def run() -> None:
        keeper.launch(number, setup.space.start(1))
        for epoch in range(1, EPOCHS + 1):
            result = {**figures, "curve": curve[:epoch], "done": epoch == EPOCHS}
            keeper.on_trial_result(epoch, [], ours, result)

    return run
