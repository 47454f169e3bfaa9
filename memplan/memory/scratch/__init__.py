"""Bytes that a kernel allocates inside one aten op beyond the op's results."""

from memplan.memory.scratch.table import scratch_bytes

__all__ = ["scratch_bytes"]
