"""Architectures by name. One file per architecture; `table` builds and loads them."""

from visionloop.models.classifier import Classifier
from visionloop.models.network import Family, GradcamLayer
from visionloop.models.table import ARCHITECTURES, build, check_buildable, load_model

__all__ = ["ARCHITECTURES", "Classifier", "Family", "GradcamLayer", "build", "check_buildable", "load_model"]
