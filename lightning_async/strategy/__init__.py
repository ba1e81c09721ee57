"""The Lightning side: the only folder that imports Lightning, and only when a class of it is asked for."""
