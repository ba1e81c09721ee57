"""Train one model on machines that are far apart, unequal, unreliable and not all trusted."""
