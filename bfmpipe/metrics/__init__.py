"""What the tables say: aggregates with intervals, and the metrics of adaptation curves."""
