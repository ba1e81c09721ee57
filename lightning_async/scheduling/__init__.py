"""Who trains on which samples (ledger, schedulers, predictors), and how much between two updates (rounds)."""

from lightning_async.scheduling.held import Held, Unit
from lightning_async.scheduling.ledger import Ledger
from lightning_async.scheduling.market import Capability, Market, Telemetry, Worker
from lightning_async.scheduling.matching import is_stable, stable_matching
from lightning_async.scheduling.order import permutation
from lightning_async.scheduling.predictors import PREDICTORS, Predictor, ewma, least_squares, predictor
from lightning_async.scheduling.ranges import Range
from lightning_async.scheduling.rounds import SIZINGS, Sizing, Speed, auto, sizing
from lightning_async.scheduling.schedulers import (
    SCHEDULERS,
    Scheduler,
    capability,
    first_come,
    gale_shapley,
    own,
    priority,
    scheduler,
)

__all__ = [
    "PREDICTORS",
    "SCHEDULERS",
    "SIZINGS",
    "Capability",
    "Held",
    "Ledger",
    "Market",
    "Predictor",
    "Range",
    "Scheduler",
    "Sizing",
    "Speed",
    "Telemetry",
    "Unit",
    "Worker",
    "auto",
    "capability",
    "ewma",
    "first_come",
    "gale_shapley",
    "is_stable",
    "least_squares",
    "own",
    "permutation",
    "predictor",
    "priority",
    "scheduler",
    "sizing",
    "stable_matching",
]
