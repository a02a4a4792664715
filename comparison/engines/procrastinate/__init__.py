"""procrastinate 3.10: jobs in the project's PostgreSQL, and workers that schedule them."""
