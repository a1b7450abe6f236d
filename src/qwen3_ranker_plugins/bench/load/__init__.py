"""What many callers of a server wait for: open loop at given rates, closed loop with given numbers of clients."""
