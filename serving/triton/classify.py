"""The public model `classify`: encoded images in; label, probabilities, doubts and a prediction id out; all logged.

For all requests of a dynamic batch: decode and resize each image (`visionloop.preprocess`), send one array to the champion's
version of `classifier` inside the server (BLS), derive the watched numbers (`visionloop.observe`), put each row on file
(`serving.spool`), hand the image over for keeping (`serving.images`), answer. A request with an image that cannot be used is
refused as a whole, naming it, and the refused image is logged too, not kept. The champion is what `release.json` says; a
change is noticed at the next batch and followed once the server serves the new version.

What the launcher says by environment variables: VISIONLOOP_STORE_URL and VISIONLOOP_SPOOL (without both nothing is logged),
VISIONLOOP_IMAGES (without it and a store no image is kept), VISIONLOOP_KEEP_IMAGES, VISIONLOOP_KEEP_IMAGES_MEGABYTES,
VISIONLOOP_MAX_IMAGE_MEGABYTES, VISIONLOOP_MAX_IMAGE_MEGAPIXELS.
Does not cover: shares of traffic for other versions than the champion.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

from serving.images import ImageKeeper
from serving.repository import (
    CLASSIFIER,
    IMAGE,
    LABEL,
    MODEL_VERSION,
    PREDICTION_ID,
    PROBABILITIES,
    PROBABILITY,
    REQUEST_ID,
    REVIEW,
    UNKNOWN,
    read_release,
    release_identity,
    version_folder,
)
from serving.spool import Spool
from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME, load_card
from visionloop.errors import ImageError, VisionloopError
from visionloop.observe import Observer
from visionloop.preprocess import DecodedImage, decode, encode_png, resize
from visionloop.records import LoggedPrediction

STORE_URL, SPOOL = "VISIONLOOP_STORE_URL", "VISIONLOOP_SPOOL"
MAX_MEGABYTES, MAX_MEGAPIXELS = "VISIONLOOP_MAX_IMAGE_MEGABYTES", "VISIONLOOP_MAX_IMAGE_MEGAPIXELS"
IMAGES, KEEP_SHARE, KEEP_MEGABYTES = "VISIONLOOP_IMAGES", "VISIONLOOP_KEEP_IMAGES", "VISIONLOOP_KEEP_IMAGES_MEGABYTES"
MAX_REQUEST_ID_BYTES = 256  # a UUID has 36; more would only fill the store
SECONDS_BETWEEN_TRIES = 0.5  # of following a release that is not served yet


@dataclass(frozen=True, slots=True)
class _Image:
    """One image of a request, decoded."""

    data: bytes
    decoded: DecodedImage
    request_id: str
    decode_ms: float
    start: float  # time.perf_counter() when its request was taken up


class TritonPythonModel:
    """What the Python backend makes one of per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the release and open the journal."""
        self._repository = Path(args["model_repository"]).parent
        self._max_bytes = int(float(os.environ.get(MAX_MEGABYTES, "10")) * 1e6)
        self._max_pixels = int(float(os.environ.get(MAX_MEGAPIXELS, "25")) * 1e6)
        self._seen: tuple[int, int] | None = None
        self._next_try = 0.0
        self._observer = self._read_champion()
        decode(encode_png(np.zeros((8, 8, 3), np.uint8)))  # Pillow loads its decoders at the first image: 70 ms
        store_url, spool = os.environ.get(STORE_URL), os.environ.get(SPOOL)
        self._spool = Spool(Path(spool), store_url) if store_url and spool else None
        self._keeper = _keeper(store_url) if self._spool is not None else None
        # The journal's thread moves rows into the store; a batch that waits for it should wait 0.5 ms and not 5.
        sys.setswitchinterval(0.0005)
        if self._spool is None:
            pb_utils.Logger.log_warn(f"Predictions are not logged: set {STORE_URL} and {SPOOL} to log them.")
        self._logged = pb_utils.MetricFamily(
            name="visionloop_predictions_total", description="Predictions by status", kind=pb_utils.MetricFamily.COUNTER
        )
        self._counters = {
            status: self._logged.Metric(labels={"status": status}) for status in ("answered", "rejected", "not_logged")
        }
        self._counts: Counter[str] = Counter()
        if self._keeper is not None:
            self._kept_family = pb_utils.MetricFamily(  # its counters live as long as it does
                name="visionloop_kept_images_total",
                description="Images for labelling by what became of them",
                kind=pb_utils.MetricFamily.COUNTER,
            )
            self._kept = self._keeper.counts()
            self._kept_counters = {status: self._kept_family.Metric(labels={"status": status}) for status in self._kept}

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer or refuse each request."""
        self._follow_release()
        decoded = [self._decode(request) for request in requests]
        images = [image for result in decoded if isinstance(result, list) for image in result]
        answers = self._answer(images) if images else []
        responses = []
        taken = 0
        for result in decoded:
            if isinstance(result, str):
                error = pb_utils.TritonError(result, pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=error))
            elif isinstance(answers, str):
                error = pb_utils.TritonError(answers, pb_utils.TritonError.UNAVAILABLE)
                responses.append(pb_utils.InferenceResponse(error=error))
            else:
                responses.append(_response(answers[taken : taken + len(result)]))
                taken += len(result)
        for status, count in self._counts.items():
            self._counters[status].increment(count)  # a message to the server, so once a batch and not once an image
        self._counts.clear()
        self._count_kept()
        return responses

    def finalize(self) -> None:
        """Write what waits, and move what is on file into the store."""
        if self._keeper is not None:
            self._keeper.close()
        if self._spool is not None:
            self._spool.close()

    def _decode(self, request: Any) -> list[_Image] | str:
        """The images of a request, or the sentence that refuses it."""
        start = time.perf_counter()
        rows = pb_utils.get_input_tensor_by_name(request, IMAGE).as_numpy().reshape(-1)
        try:
            request_ids = _request_ids(request, len(rows))
        except ValueError as error:
            return str(error)
        images = []
        for index, data in enumerate(rows):
            before = time.perf_counter()
            try:
                if len(data) > self._max_bytes:
                    raise ImageError(
                        "too_large",
                        f"The image has {len(data) / 1e6:.1f} MB, more than the limit of {self._max_bytes / 1e6:g} MB; "
                        "make it smaller first.",
                    )
                found = decode(data, max_pixels=self._max_pixels)
            except ImageError as error:
                spent = (time.perf_counter() - before) * 1000
                total = (time.perf_counter() - start) * 1000
                row = self._observer.rejected(data, error, request_id=request_ids[index], decode_ms=spent, total_ms=total)
                self._log("rejected", row)
                return str(error) if len(rows) == 1 else f"Image {index} of {len(rows)}: {error}"
            spent = (time.perf_counter() - before) * 1000
            images.append(_Image(data, found, request_ids[index], spent, start))
        return images

    def _answer(self, images: list[_Image]) -> list[LoggedPrediction] | str:
        """One row per image, on file; or the sentence that says why the model does not answer."""
        before = time.perf_counter()
        observer = self._observer
        pixels = [resize(image.decoded.image, observer.card.preprocess) for image in images]
        resized_ms = (time.perf_counter() - before) * 1000 / len(images)
        before = time.perf_counter()
        outputs = _infer(int(observer.model_version), np.stack(pixels))
        if isinstance(outputs, str):
            # The version may have been taken out of service since the release was looked at.
            self._next_try = 0.0
            if self._follow_release():
                return self._answer(images)
            return outputs
        logits, embedding = outputs
        infer_ms = (time.perf_counter() - before) * 1000
        rows = []
        for index, image in enumerate(images):
            row = observer.answered(
                image.data,
                image.decoded,
                pixels[index],
                logits[index],
                embedding[index],
                request_id=image.request_id,
                decode_ms=image.decode_ms + resized_ms,
                infer_ms=infer_ms,
                total_ms=(time.perf_counter() - image.start) * 1000,
                batch_size=len(images),
            )
            rows.append(row)
        self._log("answered", *rows)
        if self._keeper is not None:
            for image, row in zip(images, rows, strict=True):
                self._keeper.keep(row.image_sha256, image.data)
        return rows

    def _log(self, status: str, *rows: LoggedPrediction) -> None:
        self._counts[status] += len(rows)
        if self._spool is not None and not self._spool.append(*rows):
            self._counts["not_logged"] += len(rows)

    def _count_kept(self) -> None:
        """Tell the server what the keeper's thread did since the last batch."""
        if self._keeper is None:
            return
        counts = self._keeper.counts()
        for status, count in counts.items():
            if count != self._kept[status]:
                self._kept_counters[status].increment(count - self._kept[status])
        self._kept = counts

    def _follow_release(self) -> bool:
        """Switch to the champion of a changed `release.json` once it is served; True when it did."""
        try:
            if release_identity(self._repository) == self._seen or time.monotonic() < self._next_try:
                return False
            self._next_try = time.monotonic() + SECONDS_BETWEEN_TRIES
            before, seen = self._observer, self._seen
            self._observer = self._read_champion()
        except (VisionloopError, OSError) as error:
            pb_utils.Logger.log_warn(f"The champion stays version {self._observer.model_version}: {error}")
            return False
        spec = self._observer.card.preprocess
        probe = _infer(int(self._observer.model_version), np.zeros((1, spec.height, spec.width, 3), np.uint8))
        if isinstance(probe, str):
            self._observer, self._seen = before, seen
            return False
        pb_utils.Logger.log_info(f"The champion is now version {self._observer.model_version}.")
        return self._observer.model_version != before.model_version

    def _read_champion(self) -> Observer:
        seen = release_identity(self._repository)
        release = read_release(self._repository)
        folder = version_folder(self._repository, release.champion)
        card = load_card(folder)
        card.verify(folder)
        observer = Observer.load(folder, card, model_version=str(release.champion))
        self._seen = seen
        return observer


def _keeper(store_url: str | None) -> ImageKeeper | None:
    """What keeps images, where the launcher says where and some are to be kept."""
    folder, share = os.environ.get(IMAGES), float(os.environ.get(KEEP_SHARE, "1"))
    if not folder or not store_url or not share:
        return None
    return ImageKeeper(Path(folder), store_url, share=share, max_megabytes=float(os.environ.get(KEEP_MEGABYTES, "1000")))


def _infer(version: int, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | str:
    """Logits [N, K] and embedding [N, D] from one version of `classifier`, or why there are none."""
    request = pb_utils.InferenceRequest(
        model_name=CLASSIFIER,
        model_version=version,
        inputs=[pb_utils.Tensor(INPUT_NAME, images)],
        requested_output_names=[LOGITS_NAME, EMBEDDING_NAME],
    )
    response = request.exec()
    if response.has_error():
        return f"Version {version} of the model does not answer ({response.error().message()}); try again."
    return (
        pb_utils.get_output_tensor_by_name(response, LOGITS_NAME).as_numpy(),
        pb_utils.get_output_tensor_by_name(response, EMBEDDING_NAME).as_numpy(),
    )


def _request_ids(request: Any, count: int) -> list[str]:
    tensor = pb_utils.get_input_tensor_by_name(request, REQUEST_ID)
    values = [request.request_id().encode()] * count if tensor is None else list(tensor.as_numpy().reshape(-1))
    if max(map(len, values), default=0) > MAX_REQUEST_ID_BYTES:
        raise ValueError(f"A request id has over {MAX_REQUEST_ID_BYTES} bytes; send a shorter one.")
    try:
        return [value.decode() for value in values]
    except UnicodeDecodeError:
        raise ValueError("A request id is not UTF-8; send text.") from None


def _response(rows: list[LoggedPrediction]) -> Any:
    def text(name: str, values: list[str]) -> Any:
        return pb_utils.Tensor(name, np.array([[value.encode()] for value in values], dtype=np.object_))

    return pb_utils.InferenceResponse(
        [
            text(LABEL, [row.label or "" for row in rows]),
            pb_utils.Tensor(PROBABILITY, np.array([[row.confidence] for row in rows], dtype=np.float32)),
            pb_utils.Tensor(PROBABILITIES, np.array([row.probabilities for row in rows], dtype=np.float32)),
            text(PREDICTION_ID, [row.prediction_id for row in rows]),
            text(MODEL_VERSION, [row.model_version for row in rows]),
            pb_utils.Tensor(UNKNOWN, np.array([[bool(row.unknown)] for row in rows])),
            pb_utils.Tensor(REVIEW, np.array([[bool(row.review)] for row in rows])),
        ]
    )
