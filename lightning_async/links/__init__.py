"""Lines between machines: what they are like, presets by name, and what becomes of bytes on them in virtual time."""

from lightning_async.links.link import Brownout, Cuts, Direction, Link, Way
from lightning_async.links.presets import LINKS, PRESETS, link

__all__ = ["LINKS", "PRESETS", "Brownout", "Cuts", "Direction", "Link", "Way", "link"]
