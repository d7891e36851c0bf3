"""What to keep of a program between its turns, and whose turn it is: published policies, and Braid's own."""
