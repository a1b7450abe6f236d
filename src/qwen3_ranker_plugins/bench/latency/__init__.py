"""What a client of the server waits for."""
