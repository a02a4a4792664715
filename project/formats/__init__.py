"""How Django writes moments by itself, such as in columns of other apps: as accounts.words does."""
