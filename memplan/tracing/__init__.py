"""One training step on fake tensors, recorded."""

from memplan.tracing.fake import FakeModel, fake_model
from memplan.tracing.record import StepRecord, record_step
from memplan.tracing.step import Loss, run_step

__all__ = ["FakeModel", "Loss", "StepRecord", "fake_model", "record_step", "run_step"]
