"""The highest load that keeps the limits."""
