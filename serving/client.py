"""The client of the endpoint, over HTTP or gRPC.

`Client.predict_images` sends encoded images to `classify` (decoded, logged and answered with labels by the server);
`Client.predict_tensors` sends uint8 arrays to `classifier`. Any standard Triton client can do the same; this one cuts large
batches, repeats a call that met no server, and answers with sentences.
Does not cover: use of one client from several threads (make one each), TLS, and asynchronous calls.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
from tritonclient.utils import InferenceServerException

from serving.repository import (
    CLASSIFIER,
    CLASSIFY,
    IMAGE,
    LABEL,
    MODEL_VERSION,
    PREDICTION_ID,
    PROBABILITIES,
    PROBABILITY,
    REQUEST_ID,
    REVIEW,
    UNKNOWN,
)
from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME
from visionloop.errors import ImageError, ServingError
from visionloop.records import Prediction

Result = TypeVar("Result")
Floats = npt.NDArray[np.float32]

MAX_REQUEST_BYTES = 32 << 20  # Triton's own default limit is 64 MB
RETRIES = 5  # with doubling waits these span 3 s; a restarted server is back in about as long
FIRST_WAIT_SECONDS = 0.1


class Client:
    """One connection to a Triton server that serves `classify` and `classifier`. A context manager.

    `url` is "host:port" without a scheme, as Triton's own clients take it.

    >>> with Client("127.0.0.1:8000") as client:
    ...     client.predict_images([Path("cat.jpg").read_bytes()])[0].label
    'cat'

    Raises (from every method):
        ImageError: reason "refused": the server refuses the images; the message says which and why.
        ServingError: no server answers there, or it fails.
    """

    def __init__(self, url: str, protocol: Literal["http", "grpc"] = "http", *, timeout_seconds: float = 60.0) -> None:
        if "://" in url:
            raise ServingError(f"{url!r} has a scheme; write host:port, as 127.0.0.1:8000.")
        self._url = url
        self._protocol = protocol
        self._configs: dict[str, dict[str, Any]] = {}
        self._call: dict[str, Any] = {}
        # What the libraries below raise where the connection is at fault, beside OSError.
        self._closed: tuple[type[Exception], ...] = ()
        if protocol == "http":
            import tritonclient.http as triton
            from geventhttpclient.response import HTTPConnectionClosed

            self._closed = (HTTPConnectionClosed,)
            self._client = triton.InferenceServerClient(
                url, connection_timeout=timeout_seconds, network_timeout=timeout_seconds
            )
        else:
            import tritonclient.grpc as triton

            self._client = triton.InferenceServerClient(url)
            self._call = {"client_timeout": timeout_seconds}
        self._triton = triton

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def predict_images(self, images: Sequence[bytes], request_ids: Sequence[str] | None = None) -> list[Prediction]:
        """What the champion says of encoded images (JPEG, PNG, WebP, BMP), in their order; each is logged by the server.

        `request_ids` are your own names for the images, one each; they lie beside the predictions in the store. Images go
        out in requests of at most the server's batch size; one bad image refuses its request, and later ones are not
        sent.
        """
        if request_ids is not None and len(request_ids) != len(images):
            raise ValueError(f"{len(request_ids)} request ids for {len(images)} images; give one each.")
        found: list[Prediction] = []
        for start, stop in _chunks([len(image) for image in images], self._batch_size(CLASSIFY) if images else 1):
            inputs = [self._text(IMAGE, images[start:stop])]
            if request_ids is not None:
                inputs.append(self._text(REQUEST_ID, [value.encode() for value in request_ids[start:stop]]))
            # A server that was started from an older repository does not know the two last ones.
            flags = [name for name in (UNKNOWN, REVIEW) if name in self._outputs(CLASSIFY)]
            names = (LABEL, PROBABILITY, PROBABILITIES, PREDICTION_ID, MODEL_VERSION, *flags)
            answer = self._infer(CLASSIFY, inputs, names, stop - start, "")
            unknown, review = (
                answer[name][:, 0] if name in flags else [False] * (stop - start) for name in (UNKNOWN, REVIEW)
            )
            found += [
                Prediction(
                    label=label.decode(),
                    probability=float(probability),
                    probabilities=tuple(float(value) for value in probabilities),
                    prediction_id=prediction_id.decode(),
                    model_version=version.decode(),
                    unknown=bool(strange),
                    review=bool(doubtful),
                )
                for label, probability, probabilities, prediction_id, version, strange, doubtful in zip(
                    answer[LABEL][:, 0],
                    answer[PROBABILITY][:, 0],
                    answer[PROBABILITIES],
                    answer[PREDICTION_ID][:, 0],
                    answer[MODEL_VERSION][:, 0],
                    unknown,
                    review,
                    strict=True,
                )
            ]
        return found

    def predict_tensors(self, images: npt.NDArray[np.uint8], version: int | None = None) -> tuple[Floats, Floats]:
        """Logits float32 [N, K] and embedding float32 [N, D] of model inputs uint8 [N, H, W, 3]; nothing is logged.

        `version` None means the newest version that is served.
        """
        if images.dtype != np.uint8 or images.ndim != 4 or len(images) == 0:
            raise ImageError(
                "wrong_input",
                f"The model takes uint8 [N, H, W, 3] with N at least 1, not {images.dtype} {list(images.shape)}.",
            )
        logits, embeddings = [], []
        for start, stop in _chunks([images[0].nbytes] * len(images), self._batch_size(CLASSIFIER)):
            tensor = self._triton.InferInput(INPUT_NAME, list(images[start:stop].shape), "UINT8")
            tensor.set_data_from_numpy(np.ascontiguousarray(images[start:stop]))
            answer = self._infer(CLASSIFIER, [tensor], (LOGITS_NAME, EMBEDDING_NAME), stop - start, str(version or ""))
            logits.append(answer[LOGITS_NAME])
            embeddings.append(answer[EMBEDDING_NAME])
        return np.concatenate(logits), np.concatenate(embeddings)

    def ready(self) -> bool:
        """Whether the server and both models answer; False, too, where no server is."""
        try:
            return bool(
                self._client.is_server_ready(**self._call)
                and self._client.is_model_ready(CLASSIFY, **self._call)
                and self._client.is_model_ready(CLASSIFIER, **self._call)
            )
        except (InferenceServerException, OSError, *self._closed):
            return False

    def versions(self) -> list[int]:
        """The versions of `classifier` that are served, oldest first."""
        answer = self._try(lambda: self._client.get_model_metadata(CLASSIFIER, **self._as_json(), **self._call))
        return sorted(int(version) for version in answer["versions"])

    def _batch_size(self, model: str) -> int:
        return int(self._config(model)["max_batch_size"])

    def _outputs(self, model: str) -> set[str]:
        return {str(output["name"]) for output in self._config(model)["output"]}

    def _config(self, model: str) -> dict[str, Any]:
        if model not in self._configs:
            answer = self._try(lambda: self._client.get_model_config(model, **self._as_json(), **self._call))
            self._configs[model] = answer.get("config", answer)  # gRPC wraps it
        return self._configs[model]

    def _as_json(self) -> dict[str, bool]:
        return {"as_json": True} if self._protocol == "grpc" else {}

    def _text(self, name: str, values: Sequence[bytes]) -> Any:
        tensor = self._triton.InferInput(name, [len(values), 1], "BYTES")
        array = np.empty((len(values), 1), dtype=np.object_)
        array[:, 0] = values
        tensor.set_data_from_numpy(array)
        return tensor

    def _infer(self, model: str, inputs: list[Any], names: Sequence[str], rows: int, version: str) -> dict[str, Any]:
        outputs = [self._triton.InferRequestedOutput(name) for name in names]
        answer = self._try(lambda: self._client.infer(model, inputs, model_version=version, outputs=outputs, **self._call))
        arrays = {}
        for name in names:
            try:
                array = arrays[name] = answer.as_numpy(name)
            except ValueError:  # fewer bytes than the shape says
                array = None
            # A Triton whose Python has the wrong numpy answers 200 with outputs of zero bytes.
            if array is None or len(array) != rows or array.size == 0:
                raise ServingError(
                    f"The server at {self._url} answers '{name}' without content; its Python models need numpy below 2, "
                    "run `visionloop doctor` there."
                )
        return arrays

    def _try(self, call: Callable[[], Result]) -> Result:
        wait = FIRST_WAIT_SECONDS
        for attempt in range(RETRIES + 1):
            try:
                return call()
            except (InferenceServerException, OSError, *self._closed) as error:
                if self._is_connection_fault(error) and attempt < RETRIES:
                    time.sleep(wait)
                    wait *= 2
                    continue
                raise self._translated(error) from error
        raise AssertionError("unreachable")

    def _translated(self, error: BaseException) -> ImageError | ServingError:
        late = f"The Triton server at {self._url} did not answer in time; send fewer images at once."
        if isinstance(error, TimeoutError):
            return ServingError(late)
        if not isinstance(error, InferenceServerException):
            return ServingError(f"No Triton server answers at {self._url} ({error}); start one with `visionloop serve`.")
        status, message = str(error.status()), str(error.message())
        if status in ("400", "StatusCode.INVALID_ARGUMENT"):
            return ImageError("refused", message)
        if self._is_connection_fault(error):
            return ServingError(f"No Triton server answers at {self._url}; start one with `visionloop serve`.")
        if "DEADLINE" in status:
            return ServingError(late)
        return ServingError(f"The Triton server at {self._url} fails: {message}")

    def _is_connection_fault(self, error: BaseException) -> bool:
        if isinstance(error, InferenceServerException):
            # gRPC says UNAVAILABLE both where nothing listens and where the model says so; only the former names the
            # connection.
            return error.status() == "StatusCode.UNAVAILABLE" and any(
                word in str(error.message()) for word in ("connect", "Connection", "Socket closed")
            )
        return isinstance(error, (ConnectionError, *self._closed))


def _chunks(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut rows of these byte sizes into spans of at most `most` rows and, where rows are small enough, MAX_REQUEST_BYTES."""
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and (index - start == most or total + size > MAX_REQUEST_BYTES):
            yield start, index
            start, total = index, 0
        total += size
    if sizes:
        yield start, len(sizes)
