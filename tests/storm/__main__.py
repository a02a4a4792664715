"""``python -m tests.storm``, and with ``--proof`` the planted bugs. Forks import it: it is short."""

if __name__ == "__main__":
    import sys

    from sandbox import environment

    environment.isolate()
    if "--proof" in sys.argv:
        from tests.storm.planted import main
    else:
        from tests.storm.storm import main
    sys.exit(main())
