"""Packed images in, a trained classifier out, resumable at every epoch."""

from visionloop.training.loop import EpochRecord, TrainResult, clear_resume, train

__all__ = ["EpochRecord", "TrainResult", "clear_resume", "train"]
