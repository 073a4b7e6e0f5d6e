"""The model `classifier` on Triton's Python backend: uint8 images [n, H, W, 3] to logits [n, K] and embedding [n, D].

The same repository folder serves Triton's own `onnxruntime` backend, which then needs none of this. All requests of a
dynamic batch go through the session as one array. Does not cover: encoded images and logging (`classify`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from visionloop.card import EMBEDDING_NAME, INPUT_NAME, LOGITS_NAME
from visionloop.compression.parity import check_golden
from visionloop.errors import VisionloopError
from visionloop.runtime import load


class TritonPythonModel:
    """What the Python backend makes one of per instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model of this version, after its hash and then its answers on this machine were checked."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder = Path(args["model_repository"]) / args["model_version"]
        self._model, card = load(folder, threads=int(parameters["threads"]["string_value"]))
        check_golden(self._model, card, folder)
        # The first run allocates and plans; no user should wait for it.
        self._model.run(np.zeros((1, card.preprocess.height, card.preprocess.width, 3), np.uint8))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each request with its share of one session run."""
        images = [pb_utils.get_input_tensor_by_name(request, INPUT_NAME).as_numpy() for request in requests]
        try:
            logits, embedding = self._model.run(images[0] if len(images) == 1 else np.concatenate(images))
        except VisionloopError as error:
            return [pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error))) for _ in requests]
        ends = np.cumsum([len(array) for array in images])[:-1]
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor(LOGITS_NAME, one), pb_utils.Tensor(EMBEDDING_NAME, other)])
            for one, other in zip(np.split(logits, ends), np.split(embedding, ends), strict=True)
        ]
