"""One module for each step, in the order of their numbers; a released one is never changed."""
