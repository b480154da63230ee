"""What a user would run instead, on the same weights. Each peer is a process that obeys line by line."""
