"""The settings, read from the environment or from a .env file beside manage.py (DJANGO_ENV_FILE names another file).

.env.example lists every variable.

With nothing set this is a development machine: SQLite, debug pages, a placeholder key. ``DJANGO_DEBUG=0``, which the
Docker image sets, means production: then a missing or insecure setting stops the start, with a message that names it.
"""

import os
import socket
import ssl
from datetime import timedelta
from pathlib import Path
from urllib.parse import quote

from csp.constants import NONE, SELF
from django.core.exceptions import ImproperlyConfigured

from accounts import defaults
from project import environment, service_urls
from project.environment import boolean, decimal, listed, one_of, whole, within
from project.start import obey_log_format

BASE_DIR = Path(__file__).resolve().parent.parent

_env_file = os.environ.get("DJANGO_ENV_FILE")
environment.read_file(Path(_env_file or BASE_DIR / ".env"), must_exist=bool(_env_file))
obey_log_format()
env = environment.Environment(os.environ)

# --- Development or production ---

DEBUG = env.read("DJANGO_DEBUG", boolean, default=True)
if not DEBUG:
    env.require("DJANGO_SECRET_KEY", "Generate one: python -c 'import secrets; print(secrets.token_urlsafe(50))'")
SECRET_KEY = env.read(
    "DJANGO_SECRET_KEY",
    str if DEBUG else environment.signing_key,
    default="development-only-and-refused-in-production-change-me",
    secret=True,
)
if not DEBUG:
    env.require("DJANGO_ALLOWED_HOSTS", "List the host names this site answers to, such as trials.example.com.")
ALLOWED_HOSTS = env.read("DJANGO_ALLOWED_HOSTS", listed(environment.host), default=["localhost", "127.0.0.1", "[::1]"])
if not DEBUG and "*" in ALLOWED_HOSTS:
    raise ImproperlyConfigured("DJANGO_ALLOWED_HOSTS is '*', which lets anybody forge links. List the host names.")
CSRF_TRUSTED_ORIGINS: list[str] = env.read("DJANGO_CSRF_TRUSTED_ORIGINS", listed(environment.origin), default=[])

# --- The rule. accounts/defaults.py explains these settings, accounts/checks.py has their bounds. ---

TRIAL_DAYS = env.read("TRIAL_DAYS", whole, defaults.TRIAL_DAYS)
TRIAL_GRACE_DAYS = env.read("TRIAL_GRACE_DAYS", whole, defaults.TRIAL_GRACE_DAYS)
TRIAL_EXPIRY_MAX = env.read("TRIAL_EXPIRY_MAX", whole, defaults.TRIAL_EXPIRY_MAX)
TRIAL_RUN_MAX_AGE_HOURS = env.read("TRIAL_RUN_MAX_AGE_HOURS", decimal, defaults.TRIAL_RUN_MAX_AGE_HOURS)
TRIAL_LEDGER_DAYS = env.read("TRIAL_LEDGER_DAYS", whole, defaults.TRIAL_LEDGER_DAYS)

# --- Access ---

TRIAL_GATE = env.read("TRIAL_GATE", boolean, defaults.TRIAL_GATE)
TRIAL_URL = defaults.TRIAL_URL
BILLING_URL = env.read("BILLING_URL", str, defaults.BILLING_URL)
SUPPORT_EMAIL = env.read("SUPPORT_EMAIL", str, defaults.SUPPORT_EMAIL)
LOGIN_URL = "/login/"
LOGIN_REDIRECT_URL = "/"  # leads customers to the product and staff to the admin

# --- Monitoring ---

METRICS_TOKEN = env.read("METRICS_TOKEN", str, defaults.METRICS_TOKEN, secret=True)
TRIAL_PING_URL = env.read("TRIAL_PING_URL", service_urls.ping, defaults.TRIAL_PING_URL, secret=True)
# Off unless set; project/apps.py starts both. Their libraries read their other standard variables themselves.
SENTRY_DSN = env.read("SENTRY_DSN", service_urls.sentry, default="", secret=True)
_collectors = [
    env.read(name, service_urls.collector, default="", secret=True)
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
]
OTEL_TRACES_EXPORTER = env.read(
    "OTEL_TRACES_EXPORTER", one_of("otlp", "none"), default="otlp" if any(_collectors) else "none"
)
env.read("OTEL_EXPORTER_OTLP_PROTOCOL", one_of("http/protobuf"), default="")  # the only one that is installed
HEARTBEAT_FILE = env.read("HEARTBEAT_FILE", str, default="")  # see project/heartbeat.py

# --- Mails to customers ---

TRIAL_NOTICES = env.read("TRIAL_NOTICES", boolean, defaults.TRIAL_NOTICES)
# Set but empty means no reminders.
TRIAL_REMINDER_DAYS = env.read(
    "TRIAL_REMINDER_DAYS", listed(whole), [] if "TRIAL_REMINDER_DAYS" in os.environ else defaults.TRIAL_REMINDER_DAYS
)
TRIAL_NOTICE_WINDOW_DAYS = env.read("TRIAL_NOTICE_WINDOW_DAYS", whole, defaults.TRIAL_NOTICE_WINDOW_DAYS)
TRIAL_NOTICES_SINCE = env.read("TRIAL_NOTICES_SINCE", environment.moment, defaults.TRIAL_NOTICES_SINCE)
TRIAL_NOTICE_RATE = env.read("TRIAL_NOTICE_RATE", whole, defaults.TRIAL_NOTICE_RATE)
TRIAL_NOTICE_UNSUBSCRIBE = env.read("TRIAL_NOTICE_UNSUBSCRIBE", str, defaults.TRIAL_NOTICE_UNSUBSCRIBE)
SITE_NAME = env.read("SITE_NAME", str, defaults.SITE_NAME)
SITE_URL = env.url("SITE_URL", service_urls.site, default=defaults.SITE_URL)

_email = env.url("EMAIL_URL", service_urls.email, default="consolemail://")
EMAIL_BACKEND = _email["EMAIL_BACKEND"]
EMAIL_HOST, EMAIL_PORT = _email["EMAIL_HOST"], _email["EMAIL_PORT"]
EMAIL_HOST_USER, EMAIL_HOST_PASSWORD = _email["EMAIL_HOST_USER"], _email["EMAIL_HOST_PASSWORD"]
EMAIL_USE_TLS, EMAIL_USE_SSL = _email.get("EMAIL_USE_TLS", False), _email.get("EMAIL_USE_SSL", False)
EMAIL_FILE_PATH = _email["EMAIL_FILE_PATH"]
# Seconds for each answer of the mail server. Long, because a mail whose answer comes too late is sent again: RFC 5321
# recommends 600. Bounded, because a batch of 60 seconds plus a slow answer must end before a task's soft time limit.
EMAIL_TIMEOUT = 120
DEFAULT_FROM_EMAIL = env.read("DEFAULT_FROM_EMAIL", str, default="webmaster@localhost")

# --- Django ---

INSTALLED_APPS = [
    "project.apps.AdminConfig",  # django.contrib.admin, with the overview
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "axes",
    "csp",
    "accounts.beat",  # before django_celery_beat, because it overrides one of its templates
    "django_celery_beat",
    "users",
    "accounts",
    "project.apps.ProjectConfig",  # stops the start when a setting of accounts is wrong
    *(["sandbox", "comparison", "django_extensions"] if DEBUG else []),  # for development only
]
BEHIND_PROXY = env.read("DJANGO_BEHIND_PROXY", boolean, default=False)
MIDDLEWARE = [
    *(["project.middleware.client_address"] if BEHIND_PROXY else []),
    "django.middleware.security.SecurityMiddleware",
    "csp.middleware.CSPMiddleware",
    "django_permissions_policy.PermissionsPolicyMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "accounts.gate.TrialGateMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "axes.middleware.AxesMiddleware",  # last, as its documentation requires
]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
AUTH_USER_MODEL = "users.User"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"},
    {"NAME": "django.contrib.auth.password_validation.MinimumLengthValidator"},
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

# Ten wrong passwords, for any user names, lock an address out for 15 minutes. Attempts during that time do not extend
# it. User names are never locked: otherwise anybody who knows an operator's user name could lock the operator out.
AUTHENTICATION_BACKENDS = ["axes.backends.AxesStandaloneBackend", "django.contrib.auth.backends.ModelBackend"]
AXES_LOCKOUT_PARAMETERS = ["ip_address"]
AXES_FAILURE_LIMIT = 10
AXES_COOLOFF_TIME = timedelta(minutes=15)
AXES_RESET_COOL_OFF_ON_FAILURE_DURING_LOCKOUT = False
AXES_RESET_ON_SUCCESS = True
AXES_COOLOFF_MESSAGE = "Too many failed logins from this address. Try again in 15 minutes."
AXES_DISABLE_ACCESS_LOG = True  # no record of who logged in, from where and when: it is not needed
AXES_VERBOSE = False  # no user names in logs

# Pages load resources from this site only, and no inline script or style.
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": [NONE],
        "script-src": [SELF],
        "style-src": [SELF],
        "img-src": [SELF],
        "font-src": [SELF],
        "connect-src": [SELF],
        "form-action": [SELF],
        "frame-ancestors": [NONE],
        "base-uri": [NONE],
    }
}
PERMISSIONS_POLICY: dict[str, list[str]] = {
    feature: [] for feature in ("camera", "display-capture", "geolocation", "microphone", "payment", "usb")
}

USE_TZ = True
TIME_ZONE = "UTC"
LANGUAGE_CODE = "en-us"
FORMAT_MODULE_PATH = ["project.formats"]
USE_THOUSAND_SEPARATOR = True

STATIC_URL = "static/"
STATIC_ROOT = BASE_DIR / "staticfiles"
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {
        "BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"
        if DEBUG
        else "whitenoise.storage.CompressedManifestStaticFilesStorage"
    },
}

if not DEBUG:
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    SECURE_SSL_REDIRECT = env.read("DJANGO_SSL_REDIRECT", boolean, default=True)
    SECURE_REDIRECT_EXEMPT = ["^health/", "^metrics$"]  # probes come from the internal network, over HTTP
    SECURE_HSTS_SECONDS = env.read("DJANGO_HSTS_SECONDS", within(0, 10 * 365 * 86400), default=3600)
    SECURE_HSTS_INCLUDE_SUBDOMAINS = True
    SECURE_HSTS_PRELOAD = True
    # Only behind a proxy that overwrites X-Forwarded-Proto: otherwise a client could forge it.
    if BEHIND_PROXY:
        SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# Also for what is not logged but printed, see project/logging.py; Celery's and gunicorn's own lines, see their modules.
LOG_FORMAT = env.read("LOG_FORMAT", one_of("line", "json"), default="line")
LOG_LEVEL = env.read("LOG_LEVEL", one_of("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"), default="WARNING")
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        "json": {"()": "project.logging.JsonLines"},
    },
    # Not sys.stderr, which write_json replaces.
    "handlers": {
        "stderr": {"class": "logging.StreamHandler", "formatter": LOG_FORMAT, "stream": "ext://sys.__stderr__"}
    },
    # Without Django's own handlers, which write in a format of their own, and each line a second time.
    "loggers": {"django": {"handlers": []}, "django.server": {"handlers": [], "propagate": True}},
    # By default only warnings, so that cron sends no mail about a success. Worker and beat use Celery's --loglevel.
    "root": {"handlers": ["stderr"], "level": LOG_LEVEL},
}

# --- Database ---

if not DEBUG:
    env.require("DATABASE_URL", "Give the PostgreSQL to use, such as postgres://user:password@host:5432/name.")
_database = env.url("DATABASE_URL", service_urls.database, default=f"sqlite:///{quote(str(BASE_DIR / 'db.sqlite3'))}")
DATABASES = {"default": _database}
if _database["ENGINE"] == "django.db.backends.postgresql":
    _database["CONN_MAX_AGE"] = 60  # seconds, for web; Celery closes connections before and after every task
    _database["CONN_HEALTH_CHECKS"] = True
    # PgBouncer's transaction mode supports no cursor that outlives its transaction. Only form fields would use them.
    _database["DISABLE_SERVER_SIDE_CURSORS"] = True
    _database["OPTIONS"] = {"connect_timeout": 5, **_database["OPTIONS"]}
else:
    # WAL and IMMEDIATE, so that command, worker, beat and web can share the file without "database is locked".
    _database["OPTIONS"] = {
        "timeout": 20,  # seconds
        "transaction_mode": "IMMEDIATE",
        "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;",
        **_database["OPTIONS"],
    }

# --- Celery: the heavier path. The commands need no broker and use none of these settings. ---

_redis_url = env.url("REDIS_URL", service_urls.broker, default="redis://localhost:6379/0")
CELERY_BROKER_URL = env.url("CELERY_BROKER_URL", service_urls.broker, default=_redis_url)
# Needed only to spread a run of several slices over the workers. RabbitMQ keeps no results: then REDIS_URL does, and
# where that is not set either, the task of the tick runs the slices itself.
_results = CELERY_BROKER_URL
if not CELERY_BROKER_URL.startswith(("redis://", "rediss://")):
    _results = _redis_url if os.environ.get("REDIS_URL") else "disabled://"
CELERY_RESULT_BACKEND = env.url("CELERY_RESULT_BACKEND", service_urls.result_backend, default=_results)
# By default Celery does not verify the certificate of a rediss:// broker. ?ssl_cert_reqs=none in a URL disables this.
CELERY_BROKER_USE_SSL: dict[str, ssl.VerifyMode | None] | None = None
if CELERY_BROKER_URL.startswith("rediss://"):
    CELERY_BROKER_USE_SSL = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
elif CELERY_BROKER_URL.startswith("amqps://"):
    # RabbitMQ's client verifies the name in the certificate only where the key "server_hostname" is; None is the URL's.
    CELERY_BROKER_USE_SSL = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}
if CELERY_RESULT_BACKEND.startswith("rediss://"):
    CELERY_REDIS_BACKEND_USE_SSL = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
CELERY_TASK_DEFAULT_QUEUE = "trial-expiry"  # a Redis shared with another project must not mix their tasks

# Celery's own formats, with the host: one collector has the logs of several workers.
_prefix = f"[%(asctime)s: %(levelname)s/%(processName)s {socket.gethostname()}]"
CELERY_WORKER_LOG_FORMAT = f"{_prefix} %(message)s"
CELERY_WORKER_TASK_LOG_FORMAT = f"{_prefix} %(task_name)s[%(task_id)s]: %(message)s"
# Celery would log each line of a printed traceback; project/logging.py does it in JSON, and keeps them together.
CELERY_WORKER_REDIRECT_STDOUTS = LOG_FORMAT != "json"

# UTC everywhere: a schedule in local time skips or repeats an hour when the clocks change.
CELERY_ENABLE_UTC = True
CELERY_TIMEZONE = "UTC"

# JSON only: with pickle, anybody who can write to the broker could run code in the worker.
CELERY_ACCEPT_CONTENT = ["json"]
CELERY_TASK_SERIALIZER = "json"
CELERY_RESULT_SERIALIZER = "json"

# The schedule is stored in the database and edited in the admin; a data migration of accounts.beat adds the entries.
# CELERY_BEAT_SCHEDULE stays empty: beat would overwrite those edits with it at every start.
CELERY_BEAT_SCHEDULER = "project.beat:Scheduler"  # django-celery-beat's, with a heartbeat
# So that `celery -A project inspect ping` reaches beat, too (Celery 5.7).
CELERY_BEAT_ENABLE_REMOTE_CONTROL = True

# A message not acknowledged for this long is redelivered. The time limit of the tasks is well below it, so that none is
# still running when its second copy starts. Celery's documentation of Redis lists all three settings.
_visibility_timeout = 600  # seconds
CELERY_VISIBILITY_TIMEOUT = _visibility_timeout
CELERY_RESULT_BACKEND_TRANSPORT_OPTIONS = {"visibility_timeout": _visibility_timeout}
CELERY_BROKER_TRANSPORT_OPTIONS = {
    # Of Redis; the client of RabbitMQ ignores these.
    "visibility_timeout": _visibility_timeout,
    # Without a timeout, beat waits forever on a Redis connection that was lost silently (django-celery-beat issue 824).
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    # Of RabbitMQ; the client of Redis ignores it. A message counts as sent when the broker has confirmed it.
    "confirm_publish": True,
}
CELERY_REDIS_SOCKET_TIMEOUT = 15.0
CELERY_REDIS_SOCKET_CONNECT_TIMEOUT = 5.0
CELERY_REDIS_SOCKET_KEEPALIVE = True

# When the broker is down, the worker retries forever, at its start too; a publisher fails after a few retries.
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# When the connection is lost, a worker finishes its slice. The redelivered copy finds nothing to do.
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
CELERY_BROKER_POOL_ACQUIRE_TIMEOUT = 10.0
CELERY_TASK_PUBLISH_RETRY_POLICY = {"max_retries": 3, "interval_start": 0, "interval_step": 0.5, "interval_max": 2}

# Celery's own consumer ends the worker at a malformed message.
CELERY_WORKER_CONSUMER = "accounts.consumer:Consumer"
# One message at a time for each process, so that free workers take slices that a busy one would otherwise reserve.
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
# On SIGTERM a worker finishes its tasks. On SIGQUIT it has these seconds, then requeues unfinished slices.
CELERY_WORKER_SOFT_SHUTDOWN_TIMEOUT = 20.0
# Protects against memory leaks in libraries. The project's own code uses constant memory.
CELERY_WORKER_MAX_TASKS_PER_CHILD = 1000
# Without retries, a broker that restarts when a slice is done would fail the run. Twelve take about 20 seconds.
CELERY_RESULT_BACKEND_ALWAYS_RETRY = True
CELERY_RESULT_BACKEND_MAX_RETRIES = 12
# Seconds. The ledger is the record; results only count finished slices.
CELERY_RESULT_EXPIRES = 3600
