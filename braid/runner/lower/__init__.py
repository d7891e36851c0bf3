"""KV below the device: slots in main memory and on disk, and the thread that copies."""
