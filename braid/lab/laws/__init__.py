"""Laws of whole numbers (lengths): Zipf's and mixtures of log-normals, fitted to counts; how far data lie from one."""
