"""The use cases and what they stand on: the queue, a generation under way, the sweeper, readiness. Knows only ports."""
