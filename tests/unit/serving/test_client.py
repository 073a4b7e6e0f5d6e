"""The client without a server: cutting batches, and sentences for what cannot be reached."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import numpy as np
import pytest

from serving import client as module
from serving.client import Client, _chunks
from serving.server import free_port
from visionloop.errors import ImageError, ServingError


@pytest.mark.parametrize(
    ("sizes", "most", "spans"),
    [
        ([], 8, []),
        ([1], 8, [(0, 1)]),
        ([1] * 17, 8, [(0, 8), (8, 16), (16, 17)]),
        ([20 << 20, 20 << 20, 1, 40 << 20, 1], 8, [(0, 1), (1, 3), (3, 4), (4, 5)]),
    ],
)
def test_batches_are_cut_by_rows_and_bytes(sizes: list[int], most: int, spans: list[tuple[int, int]]) -> None:
    assert list(_chunks(sizes, most)) == spans


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_no_server_is_said_in_a_sentence_after_a_few_tries(
    protocol: Literal["http", "grpc"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRIES", 2)
    url = f"127.0.0.1:{free_port(0)}"
    with Client(url, protocol, timeout_seconds=5) as client:
        assert client.ready() is False
        start = time.monotonic()
        with pytest.raises(ServingError, match=f"No Triton server answers at {url}.*start one with `visionloop serve`"):
            client.predict_images([b"x"])
        assert time.monotonic() - start >= 0.3  # waited 0.1 and 0.2 s between the three tries


def test_a_url_with_a_scheme_is_refused() -> None:
    with pytest.raises(ServingError, match="has a scheme; write host:port"):
        Client("http://127.0.0.1:8000")


def test_wrong_arguments_are_refused_before_anything_is_sent() -> None:
    with Client("127.0.0.1:1") as client:
        with pytest.raises(ValueError, match="1 request ids for 2 images"):
            client.predict_images([b"a", b"b"], ["only one"])
        with pytest.raises(ImageError, match=r"takes uint8 \[N, H, W, 3\].*not float32 \[1, 8, 8, 3\]"):
            client.predict_tensors(np.zeros((1, 8, 8, 3), np.float32))
        assert client.predict_images([]) == []


class OddServer(BaseHTTPRequestHandler):
    """Speaks the protocol as far as the client asks, and answers too late or with outputs of zero bytes."""

    protocol_version = "HTTP/1.1"
    seconds = 0.0

    def do_GET(self) -> None:  # the name that http.server calls
        self._send(json.dumps({"name": "classifier", "max_batch_size": 8, "output": []}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.seconds)
        outputs = [
            {"name": name, "datatype": "FP32", "shape": [1, 3], "parameters": {"binary_data_size": 0}}
            for name in ("logits", "embedding")
        ]
        self._send(json.dumps({"model_name": "classifier", "model_version": "1", "outputs": outputs}).encode())

    def _send(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Inference-Header-Content-Length", str(len(body)))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def odd_server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), OddServer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_answer_of_zero_bytes_is_no_answer(odd_server: str) -> None:
    """What a server says whose Python has numpy 2: status 200, and nothing behind it."""
    with Client(odd_server) as client, pytest.raises(ServingError, match=r"'logits' without content; .*need numpy below 2"):
        client.predict_tensors(np.zeros((1, 4, 4, 3), np.uint8))


def test_a_model_that_is_too_slow_is_a_sentence(odd_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OddServer, "seconds", 1.5)
    with (
        Client(odd_server, timeout_seconds=0.5) as client,
        pytest.raises(ServingError, match="did not answer in time; send fewer"),
    ):
        client.predict_tensors(np.zeros((1, 4, 4, 3), np.uint8))
