from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from grcf_ray.config import RunConfig, build_config
from grcf_ray.errors import ClusterError, ConfigError
from grcf_ray.search import calibration
from grcf_ray.search.calibration import Placement, WorkerSet, calibrate, share, suggestion, ways_on
from grcf_ray.search.preflight import fitting

if TYPE_CHECKING:
    from pathlib import Path

    from grcf_ray.data.features import Features
    from tests.search.conftest import Run


@pytest.fixture(scope="module")
def config(tiny_backbone: Path) -> RunConfig:
    return build_config({"model.backbone": str(tiny_backbone), "pairs.pairs_per_group": 6, "pairs.groups_per_step": 1})


def test_ways_on_cpus_use_all_of_them() -> None:
    ways = ways_on({"CPU": 6.0}, RunConfig())
    assert [(way.trials, way.cpus) for way in ways] == [(1, 1), (6, 1), (3, 2), (1, 4)]
    assert [(way.trials, way.cpus) for way in ways_on({"CPU": 1.0}, RunConfig())] == [(1, 1)]


def test_ways_on_a_gpu_are_shares_of_it_that_the_cpus_can_feed() -> None:
    ways = ways_on({"CPU": 36.0, "GPU": 4.0}, build_config({"search.cpus_per_worker": 2, "search.gpus_per_worker": 1}))
    expected = [(1, 2, 1), (2, 2, 0.5), (3, 2, 0.333), (4, 2, 0.25)]
    assert [(way.trials, way.cpus, way.gpus) for way in ways] == expected
    for count in (1, 2, 3, 4, 6, 8):
        assert fitting({"CPU": 99.0, "GPU": 1.0}, {"CPU": 1.0, "GPU": share(count)}) == count
    on_cpu = build_config({"search.gpus_per_worker": 0})
    assert all(way.gpus == 0 for way in ways_on({"CPU": 2.0, "GPU": 1.0}, on_cpu))


@pytest.mark.usefixtures("ray_session")
def test_a_node_that_others_hold_is_not_waited_for(
    tiny_features: Features, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    class Holder:  # of this function, so that it travels whole: a worker cannot import the tests
        def nothing(self) -> None: ...

    monkeypatch.setattr(calibration, "START_S", 0.5)
    total = int(ray.cluster_resources()["CPU"])
    holder = ray.remote(num_cpus=total)(Holder).remote()
    ray.get(holder.nothing.remote())
    try:
        with pytest.raises(ClusterError, match="only 0 of 1 processes started"):
            WorkerSet(ray.put(tiny_features), config, Placement(1, 1, 0.0)).__enter__()
    finally:
        ray.kill(holder)


def test_the_fewest_trials_that_are_nearly_the_best_are_suggested() -> None:
    ways = [Placement(1, 1, 0, 100.0), Placement(4, 1, 0, 310.0), Placement(2, 2, 0, 300.0), Placement(1, 4, 0, 200.0)]
    assert suggestion(ways) == ways[2]
    assert suggestion([Placement(1, 1, 1.0, None, "no memory")]) is None


@pytest.mark.usefixtures("ray_session")
def test_calibrate_prints_every_way_and_runs_nothing(
    run: Run, tiny_argv: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.01)
    # Fewer processes, to save time.
    monkeypatch.setattr(calibration, "ways_on", lambda *_: [Placement(1, 1, 0.0), Placement(1, 2, 0.0)])
    code, out, err = run(*tiny_argv, "--calibrate")
    assert code == 0
    header, first, second, last = out.splitlines()
    assert header.split()[:3] == ["trials", "CPUs", "each"]
    assert first.split()[:3] == ["1", "1", "0"]
    assert first.split()[-1] == "1.00"
    assert second.split()[:3] == ["1", "2", "0"]
    assert last.startswith("Suggested: --cpus-per-worker ")
    assert "Timing:  1 at a time, 1 CPU each" in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("ray_session")
def test_a_crew_counts_the_utterances_of_all(tiny_features: Features, config: RunConfig) -> None:
    import ray

    with WorkerSet(ray.put(tiny_features), config, Placement(2, 1, 0.0)) as crew:
        _, both = crew.run(3)
    assert 3 * 2 * 2 < both <= 2 * 3 * 12


@pytest.mark.usefixtures("ray_session")
def test_what_cannot_train_is_named(tiny_features: Features, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "ways_on", lambda *_: [Placement(1, 1, 0.0)])
    broken = build_config({"model.backbone": str(tmp_path / "nowhere")})
    (way,) = calibrate(tiny_features, broken, lambda _: None)
    assert way.rate is None and way.fault is not None
    assert re.search("a training process died: .*nowhere", way.fault)


def test_several_workers_are_refused(tiny_features: Features) -> None:
    config = build_config({"search.workers": 2})
    with pytest.raises(ConfigError, match="one worker each"):
        calibrate(tiny_features, config, lambda _: None)
