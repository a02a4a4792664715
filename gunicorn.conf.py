"""How gunicorn serves the web; it reads this file where it is started."""

# Loaded once, before there is a worker: a wrong setting ends gunicorn with one line. Otherwise each worker would show
# a traceback.
preload_app = True
