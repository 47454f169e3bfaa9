"""What trains, and what each layer keeps for it."""

from memplan.methods.stock import METHODS, Method, Scope, method_named

__all__ = ["METHODS", "Method", "Scope", "method_named"]
