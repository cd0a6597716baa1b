"""What a model is: its blocks, what they add, and its tail, found by watching it run and checked."""
