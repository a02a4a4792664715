# One image for web, worker, beat and command; docker-compose.yml says which is which.

FROM python:3.13-slim AS packages
# requirements-extras.txt brings Sentry and OpenTelemetry as well.
ARG REQUIREMENTS=requirements.txt
COPY requirements*.txt ./
# Installed from outside, so that the environment that is copied below holds no installer.
RUN python -m venv --without-pip /venv && \
    pip --python /venv/bin/python install --no-cache-dir --disable-pip-version-check --require-hashes -r $REQUIREMENTS

FROM python:3.13-slim
# Worker and beat write their heartbeat to this file, for probes.
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1 DJANGO_DEBUG=0 HEARTBEAT_FILE=/tmp/heartbeat
# With a name as well: Celery takes a user whose group has none for root.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin trials
WORKDIR /app
COPY --from=packages /venv /venv
COPY manage.py .
COPY project project
COPY users users
COPY accounts accounts
# Settings refuse to load without these. They are thrown away here: nothing of them is in the image.
RUN DJANGO_SECRET_KEY=used-by-collectstatic-only-and-never-by-anything-that-runs \
    DJANGO_ALLOWED_HOSTS=localhost DATABASE_URL=sqlite:///unused \
    python manage.py collectstatic --noinput
# By number, so that Kubernetes can tell that it is not root. It owns no file here and can write none.
USER 10001:10001
EXPOSE 8000
# The heartbeat in memory: on a disk that is busy gunicorn would take its workers for dead.
CMD ["gunicorn", "project.wsgi", "--config", "project/gunicorn.py", "--bind", "0.0.0.0:8000", "--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
