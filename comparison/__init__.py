"""The two paths side by side, on scratch databases."""
