"""How good an agent is and how sure we are: evaluation, statistics, the learning curve, the report of a run."""
