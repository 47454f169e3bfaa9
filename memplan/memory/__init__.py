"""What a recorded step costs: the timeline of its memory, its peak, and the bytes of every layer."""

from memplan.memory.footprint import AliveStorage, Composition, Footprint, LayerFootprint, Peak, price
from memplan.memory.optimizers import OPTIMIZERS, Implementation
from memplan.memory.timeline import Timeline, timeline

__all__ = [
    "OPTIMIZERS",
    "AliveStorage",
    "Composition",
    "Footprint",
    "Implementation",
    "LayerFootprint",
    "Peak",
    "Timeline",
    "price",
    "timeline",
]
