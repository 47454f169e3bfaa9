"""Reports as one HTML file each: pictures and tables that work from a disk, without any network."""

from memplan.reports.html.analysis import analysis_page
from memplan.reports.html.front import front_page
from memplan.reports.html.plans import planned_page
from memplan.reports.html.verification import verification_page

__all__ = ["analysis_page", "front_page", "planned_page", "verification_page"]
