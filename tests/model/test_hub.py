"""A Hugging Face hub that limits the rate or fails: the client waits as long as it is told, and the error says so."""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import _http

from grcf_ray.errors import ConfigError, HubError
from grcf_ray.model.pretrained import load_backbone, load_tokenizer
from grcf_ray.search.failures import cause_of_error
from grcf_ray.train import job

NAME = "acme/tiny"
COMMIT = "0" * 40


class Hub(ThreadingHTTPServer):
    """A server of one model's files, which refuses requests for config.json as often as it is told."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.refusals = 0
        self.status = 429
        self.times: list[float] = []
        """Of the requests for config.json."""


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, name = self.server, self.path.rpartition("/")[2]
        file = hub.folder / name
        if name == "config.json":
            hub.times.append(time.monotonic())
            if len(hub.times) <= hub.refusals:
                self.answer(hub.status, b"", {"Retry-After": "1"})
                return
        if f"/{NAME}/resolve/" in self.path and file.is_file():
            content = file.read_bytes()
            self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})
        else:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on this machine, and an empty cache."""
    hub = Hub(tiny_backbone)
    address = f"http://127.0.0.1:{hub.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    for name in ("HF_HUB_CACHE", "HF_XET_CACHE", "HF_ASSETS_CACHE"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hub"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    yield hub
    hub.shutdown()
    thread.join()
    hub.server_close()
    _http.close_session()


def test_the_client_waits_as_long_as_the_hub_says(hub: Hub, tiny_backbone: Path) -> None:
    hub.refusals = 3
    loaded, local = load_backbone(NAME).state_dict(), load_backbone(str(tiny_backbone)).state_dict()
    assert loaded.keys() == local.keys() and all(torch.equal(loaded[name], local[name]) for name in local)
    # The first request is quick to give up. The patient requests follow its error.
    waits = [after - before for before, after in zip(hub.times[1:3], hub.times[2:4], strict=True)]
    assert min(waits) >= 1.0


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_does_not_answer_is_told_from_a_backbone_that_does_not_exist(
    hub: Hub, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    hub.refusals, hub.status = 1000, status
    for load in (load_backbone, load_tokenizer):
        with pytest.raises(HubError, match=f"backbone {NAME} "):
            load(NAME)
    hub.refusals = 0
    with pytest.raises(ConfigError) as caught:
        load_backbone("acme/nosuch")
    assert not isinstance(caught.value, HubError)


@pytest.mark.parametrize("kind", [HubError, ConfigError])
def test_a_trial_without_an_answer_of_the_hub_has_no_result(
    kind: type[ConfigError], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it runs again; a backbone that does not exist is its result."""

    def fail(_job: Any, _features: Any) -> None:
        raise kind("backbone acme/tiny cannot be loaded")

    monkeypatch.setattr(job, "open_loop", fail)
    runner, unused = job.JobRunner(cast("Any", None)), cast("Any", object())
    runner.start(unused)
    if kind is HubError:
        with pytest.raises(HubError) as caught:
            runner.step()
        text = "".join(traceback.format_exception(caught.value))
        assert cause_of_error(text) == "hub"
    else:
        assert runner.step()["error"] == "ConfigError"
