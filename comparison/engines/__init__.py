"""Other engines that run the same verb on a schedule: contenders only, each set up as its own documentation advises.

Each has a package: the ``settings`` of its processes, its ``tasks``, and its ``contender``. This module imports
nothing, because importing settings imports it first.
"""
