"""Checkpoints on disk: finding, reading, checking and writing them. Nothing here knows the engine."""

from .reader import Checkpoint, open_checkpoint

__all__ = ["Checkpoint", "open_checkpoint"]
