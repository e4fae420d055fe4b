"""An S3 endpoint on this machine: the server of moto, which keeps buckets in memory."""

from __future__ import annotations

import sys
import urllib.request
from pathlib import Path
from typing import Any

from tests.servers.processes import Process, free_port

_BUCKET = "artifacts"


class S3:
    """One endpoint with one bucket.

    Attributes:
        uri: The bucket, as MLflow names it.
        environment: What a client of it needs in its environment.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.port = free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.uri = f"s3://{_BUCKET}"
        self.environment = {
            "MLFLOW_S3_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test-key",
            "AWS_SECRET_ACCESS_KEY": "test-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self._process: Process | None = None

    def start(self) -> None:
        self._process = Process(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
            self._folder / "s3.log",
            folder=self._folder,
        )
        self._process.wait_until(lambda: urllib.request.urlopen(self.endpoint, timeout=5))
        self.client().create_bucket(Bucket=_BUCKET)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process = None

    def client(self) -> Any:
        """A client of boto3, which makes its classes at run time."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
            region_name=self.environment["AWS_DEFAULT_REGION"],
        )

    def object_names(self) -> set[str]:
        """The names of all objects in the bucket."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=_BUCKET)
        return {item["Key"] for page in pages for item in page.get("Contents", [])}
