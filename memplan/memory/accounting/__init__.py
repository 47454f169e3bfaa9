"""Published ways to count memory, so that a paper's number can be set beside what a step really needs."""

from memplan.memory.accounting.account import account
from memplan.memory.accounting.records import Accounted, AccountingName, LayerAccount
from memplan.memory.accounting.rules import ACCOUNTINGS

__all__ = ["ACCOUNTINGS", "Accounted", "AccountingName", "LayerAccount", "account"]
