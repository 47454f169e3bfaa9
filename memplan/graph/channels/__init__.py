"""Channel groups of a recorded step: which channels go together, and what the step costs with fewer of them.

The functions need NumPy and SciPy and are imported from their own modules, so that the records cost nothing.
"""

from memplan.graph.channels.records import ChannelGroup, Member

__all__ = ["ChannelGroup", "Member"]
