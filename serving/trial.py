"""The trial of a model before it is published: a real Triton server must answer like the model does offline.

Held-out images go over HTTP and gRPC, encoded (`classify`) and as tensors (`classifier`). Status 200 proves nothing (a
server whose Python has the wrong numpy answers 200 with empty outputs), so values are compared. The live repository and
store are not touched. Does not cover: accuracy (stage `evaluate`) and load (`serving.loadtest`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from serving.client import Client
from serving.repository import publish
from serving.server import TritonServer
from visionloop import runtime
from visionloop.config import DeployParams, ServeParams
from visionloop.errors import ImageError, ParityError
from visionloop.features import softmax
from visionloop.preprocess import decode, resize

PROTOCOLS: tuple[Literal["http", "grpc"], ...] = ("http", "grpc")
# Probabilities travel as float32; softmax itself never widens a difference of the logits.
_FLOAT32_ROUNDING = 1e-6
_MALFORMED = b"\x89PNG\r\n\x1a\nthis is no image"


@dataclass(frozen=True, slots=True)
class Trial:
    """What a trial measured. Differences are the largest over all golden images."""

    golden_images: int
    server_start_seconds: float
    http_bytes_probability_difference: float
    grpc_bytes_probability_difference: float
    http_tensor_logit_difference: float
    grpc_tensor_logit_difference: float
    http_p50_ms: float  # one image a request, one client, through `classify`
    grpc_p50_ms: float


def prove(shipped: Path, images: Sequence[bytes], deploy: DeployParams, serve: ServeParams, folder: Path) -> Trial:
    """Serve the model folder `shipped` from a repository in the empty `folder`, and compare its answers to encoded `images`.

    Raises:
        ParityError: an answer differs by more than `deploy.max_logit_difference`, another label, or a malformed image
            that is not refused.
        ServingError: the server does not start or fails.
    """
    model, card = runtime.load(shipped)
    max_pixels = int(serve.max_image_megapixels * 1e6)
    tensors = np.stack([resize(decode(data, max_pixels=max_pixels).image, card.preprocess) for data in images])
    logits, embedding = model.run(tensors)
    probabilities = softmax(logits)
    labels = [card.labels[index] for index in logits.argmax(axis=1)]
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
        max_image_megabytes=serve.max_image_megabytes,
        max_image_megapixels=serve.max_image_megapixels,
        images=folder / "images",
        keep_images=serve.keep_images,
        keep_images_megabytes=serve.keep_images_megabytes,
    )
    by_bytes: dict[str, float] = {}
    by_tensor: dict[str, float] = {}
    p50_ms: dict[str, float] = {}
    with server:
        for protocol in PROTOCOLS:
            with Client(server.http_url if protocol == "http" else server.grpc_url, protocol) as client:
                answers = client.predict_images(images)
                served = np.array([answer.probabilities for answer in answers])
                by_bytes[protocol] = float(np.abs(served - probabilities).max())
                wrong = [index for index, answer in enumerate(answers) if answer.label != labels[index]]
                if wrong:
                    raise ParityError(
                        f"Over {protocol}, golden image {wrong[0]} is {answers[wrong[0]].label!r} when served and "
                        f"{labels[wrong[0]]!r} offline ({len(wrong)} of {len(images)} differ); nothing is published."
                    )
                served_logits, served_embedding = client.predict_tensors(tensors)
                by_tensor[protocol] = float(np.abs(served_logits - logits).max())
                _check(f"{protocol}, encoded images, probabilities", by_bytes[protocol], deploy, _FLOAT32_ROUNDING)
                _check(f"{protocol}, tensors, logits", by_tensor[protocol], deploy)
                # The embedding has no natural scale; the logits are one matrix away from it.
                scale = max(1.0, float(np.abs(embedding).max()))
                _check(f"{protocol}, tensors, embedding", float(np.abs(served_embedding - embedding).max()) / scale, deploy)
                _check_refusal(client, protocol)
                p50_ms[protocol] = _p50_ms(client, images)
    return Trial(
        golden_images=len(images),
        server_start_seconds=round(server.start_seconds, 2),
        http_bytes_probability_difference=by_bytes["http"],
        grpc_bytes_probability_difference=by_bytes["grpc"],
        http_tensor_logit_difference=by_tensor["http"],
        grpc_tensor_logit_difference=by_tensor["grpc"],
        http_p50_ms=round(p50_ms["http"], 3),
        grpc_p50_ms=round(p50_ms["grpc"], 3),
    )


def _check(what: str, difference: float, deploy: DeployParams, more: float = 0.0) -> None:
    if not difference <= deploy.max_logit_difference + more:  # not the other way round: NaN must fail
        raise ParityError(
            f"{what}: the served answer differs from the offline one by {difference:.3g}, more than "
            f"deploy.max_logit_difference {deploy.max_logit_difference:g}; nothing is published."
        )


def _check_refusal(client: Client, protocol: str) -> None:
    try:
        client.predict_images([_MALFORMED])
    except ImageError:
        return
    raise ParityError(f"Over {protocol}, the server answers a malformed image instead of refusing it; nothing is published.")


def _p50_ms(client: Client, images: Sequence[bytes]) -> float:
    times = []
    for data in images:
        start = time.perf_counter()
        client.predict_images([data])
        times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)
