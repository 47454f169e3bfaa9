"""One training step on fake tensors, recorded."""

from memplan.trace.fake import FakeModel, fake_model
from memplan.trace.record import StepRecord, record_step
from memplan.trace.step import Loss, run_step

__all__ = ["FakeModel", "Loss", "StepRecord", "fake_model", "record_step", "run_step"]
