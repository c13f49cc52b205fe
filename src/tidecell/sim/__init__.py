"""The simulator: the production state machine and scheduler under virtual time."""
