"""A deterministic simulation of a run: the real server, codecs and workers in virtual time over a virtual network."""

from lightning_async.simulation.reading import read_scenario, scenario_of, shipped
from lightning_async.simulation.result import Numbers, Point, Result
from lightning_async.simulation.scenario import Churn, Group, Place, Scenario, Trunk
from lightning_async.simulation.simulation import Simulation, simulate
from lightning_async.simulation.tasks import TASKS, Task

__all__ = [
    "TASKS",
    "Churn",
    "Group",
    "Numbers",
    "Place",
    "Point",
    "Result",
    "Scenario",
    "Simulation",
    "Task",
    "Trunk",
    "read_scenario",
    "scenario_of",
    "shipped",
    "simulate",
]
