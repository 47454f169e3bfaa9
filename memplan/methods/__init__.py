"""What trains, and what each layer keeps for it."""

from memplan.methods.method import Method, Scope
from memplan.methods.plan import Plan
from memplan.methods.structure import Structure
from memplan.methods.table import METHODS, method_named

__all__ = ["METHODS", "Method", "Plan", "Scope", "Structure", "method_named"]
