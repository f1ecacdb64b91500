"""The dashboards: what the fleet looks like when it is well, and what to look at when it is not."""

from __future__ import annotations

from tools.dashboards.boards.edge_cloud import EDGE_CLOUD
from tools.dashboards.boards.fleet import FLEET
from tools.dashboards.boards.kafka import KAFKA
from tools.dashboards.boards.overview import OVERVIEW
from tools.dashboards.boards.slo import SLO
from tools.dashboards.boards.timescale import TIMESCALE

BOARDS = (OVERVIEW, KAFKA, EDGE_CLOUD, FLEET, TIMESCALE, SLO)
