"""Running the stages: which are done, what has changed, what a plan says, and where the results go."""
