"""Measure cost and memory against size: utterances, pairs an epoch, text length, recorded trials.

    python benchmarks/growth.py --dataset mosi --data DIR --out docs/performance

Runs on the CPU of a Linux machine, with one layer of the text encoder and random weights, in about 5 minutes.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from driver_cost import trials_table
from peak_memory import memory_row, memory_table
from scaling import Cost, Scaling, function_times, kernel_times
from study import run_study
from synthetic import MEAN_WORDS, ROWS_PER_WORD, VALID_SHARE, import_utterances, write_utterances

from grcf_ray.bench.setup import Setup
from grcf_ray.bench.step import SMALL_STEP, new_loop
from grcf_ray.config import PairConfig, RunConfig, build_config, flatten
from grcf_ray.data.batches import Batch, length_sorted, micro_batches
from grcf_ray.data.features import Features, build_features
from grcf_ray.data.pairs import Step, draw_pairs, epoch_steps, pairs_per_epoch
from grcf_ray.data.store import DatasetStore
from grcf_ray.model.pretrained import (
    backbone_config,
    backbone_from_config,
    load_backbone,
    load_tokenizer,
)
from grcf_ray.model.text_encoder import TextEncoder
from grcf_ray.tables import Column, Table
from grcf_ray.train.assemble import prepare_features
from grcf_ray.train.stage import StageLoop, predict

UTTERANCES = (1_000, 3_000, 10_000, 30_000, 100_000)
PAIRS = (640, 1280, 2560, 5120)
LENGTHS = (8, 16, 32, 64, 128, 256)
STEPS = 16
"""Optimizer steps whose batches are timed, and that the process of the memory measurement takes."""
TOKENS = 2048
"""Subwords of a batch at every text length."""
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
        batch = Batch(token_BL, torch.ones_like(token_BL, dtype=torch.bool), *[None] * 6)
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


if __name__ == "__main__":
    run_study("growth", __file__, growth_tables)
