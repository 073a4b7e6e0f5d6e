"""The trial of a model before it is published: what a real Triton server answers over HTTP and gRPC, from files and tensors.

The live repository and store are not touched. Status 200 proves nothing (a server whose Python has the wrong numpy answers
200 with empty outputs), so values come back, for the stage `parity` to compare with the offline ones.
Does not cover: that comparison (`visionloop.evaluation.agreement`), and load (`serving.loadtest`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from serving import pixels
from serving.client import Client
from serving.repository import publish
from serving.server import TritonServer
from visionloop.card import load_card
from visionloop.config import DeployParams, ServeParams
from visionloop.errors import ImageError

Protocol = Literal["http", "grpc"]
PROTOCOLS: tuple[Protocol, ...] = ("http", "grpc")
Floats = npt.NDArray[np.float32]
_TIMED_IMAGES = 32  # one request each; their median is the figure


@dataclass(frozen=True)
class Answers:
    """What the server said over one protocol."""

    logits: Floats  # [N, K], of the tensors, from `classifier`
    embedding: Floats  # [N, D]
    labels: tuple[str, ...]  # [N], of the files, from `classify`
    probabilities: Floats  # [N, K]
    refusals: tuple[str, ...]  # of the files that should be refused, the sentence; "" where one was answered
    p50_ms: float  # one file a request, one client, through `classify`


@dataclass(frozen=True)
class Trial:
    """What a trial brought home."""

    answers: Mapping[Protocol, Answers]
    pixels: pixels.Pixels  # what the Python of the served models makes of the files, then of those to be refused
    server_start_seconds: float


@dataclass(frozen=True)
class Questions:
    """What a server is asked."""

    files: Sequence[bytes]  # [N] encoded images
    tensors: npt.NDArray[np.uint8]  # [N, H, W, 3], what the project makes of them
    refused: Sequence[bytes]  # files that are no images


def serve(shipped: Path, questions: Questions, folder: Path, *, deploy: DeployParams, limits: ServeParams) -> Trial:
    """Serve the model folder `shipped` from a repository in the empty `folder`, and ask it.

    Raises:
        ServingError: the server does not start or fails, or answers outputs of zero bytes.
        ImageError: it refuses one of the files that are images.
    """
    # The server from pip has the Python backend alone; the files that are proved are those that the official image serves.
    publish(shipped, folder / "model_repository", deploy.model_copy(update={"backend": "python"}))
    server = TritonServer(
        folder / "model_repository",
        run_dir=folder / "run",
        http_port=0,
        grpc_port=0,
        metrics_port=0,
        # The trial logs as the live server does, into a store of its own.
        store_url=f"sqlite:///{folder}/trial.db",
        spool=folder / "spool",
        max_image_megabytes=limits.max_image_megabytes,
        max_image_megapixels=limits.max_image_megapixels,
        images=folder / "images",
        keep_images=limits.keep_images,
        keep_images_megabytes=limits.keep_images_megabytes,
    )
    answers: dict[Protocol, Answers] = {}
    with server:
        for protocol in PROTOCOLS:
            with Client(server.http_url if protocol == "http" else server.grpc_url, protocol) as client:
                answers[protocol] = _ask(client, questions)
        spec, max_pixels = load_card(shipped).preprocess, int(limits.max_image_megapixels * 1e6)
        read = pixels.run(server.python, [*questions.files, *questions.refused], spec, max_pixels)
    return Trial(answers, read, round(server.start_seconds, 2))


def _ask(client: Client, questions: Questions) -> Answers:
    found = client.predict_images(questions.files)
    logits, embedding = client.predict_tensors(questions.tensors)
    return Answers(
        logits,
        embedding,
        tuple(answer.label for answer in found),
        np.array([answer.probabilities for answer in found], dtype=np.float32),
        tuple(_refusal(client, data) for data in questions.refused),
        round(_p50_ms(client, questions.files[:_TIMED_IMAGES]), 3),
    )


def _refusal(client: Client, data: bytes) -> str:
    try:
        client.predict_images([data])
    except ImageError as error:
        return str(error)
    return ""


def _p50_ms(client: Client, images: Sequence[bytes]) -> float:
    times = []
    for data in images:
        start = time.perf_counter()
        client.predict_images([data])
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)
