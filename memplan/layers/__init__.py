"""The layers that keep exactly what the rules of :mod:`memplan.methods.treatments` promise."""
