"""The client without a server: cutting batches, and sentences for what cannot be reached."""

from __future__ import annotations

import time
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
