"""A fixture of its own file: an S3 server on this machine, for the tests marked s3."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

__all__ = ["s3"]


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URI of an empty bucket of a server that answers as S3 does; its keys are in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    # A line for each request.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
        yield f"s3://bucket?endpoint_override={host}:{port}&scheme=http"
    server.stop()
