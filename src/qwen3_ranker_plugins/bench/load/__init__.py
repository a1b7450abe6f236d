"""Measures how long many callers wait: open loop at given rates, closed loop with given numbers of clients."""
