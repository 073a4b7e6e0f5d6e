"""Trials of many settings of one training, the best of them, and a page about all."""
