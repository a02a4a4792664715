"""The two paths side by side, on throwaway databases."""

SCRATCH = "compare_paths_"
"""How the name of every database begins that ``compare_paths`` measures on."""
