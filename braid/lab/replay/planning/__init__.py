"""What is sent when, after which, with how many tokens and which words: a trace to a plan. Pure."""
