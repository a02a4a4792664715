"""The project's own user model, and nothing else."""
