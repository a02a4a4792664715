"""Other ways to schedule the same verb, as contenders only. This file imports nothing: settings are in this package."""
