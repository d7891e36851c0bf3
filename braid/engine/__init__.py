"""Assembly: the engine, its process, and the clients that talk to it."""
