"""What a server can do, and every request in its words: asked and written before the first one is sent."""
