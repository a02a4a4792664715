"""The default of each setting that ``accounts`` reads. accounts/checks.py says what each may be.

A project's settings begin with ``from accounts.defaults import *`` and then say what differs.
"""

# --- The rule ---

TRIAL_DAYS = 60  # for accounts created from now on
TRIAL_GRACE_DAYS = 1
# The fuse: a run that finds more accounts due than this refuses to touch any. None: nothing is refused.
TRIAL_EXPIRY_MAX: int | None = None
# Alarm when no run succeeded for this long. Three ticks of the hourly schedule: one may fail unnoticed.
TRIAL_RUN_MAX_AGE_HOURS = 3.0
# How long the ledger keeps runs that expired nobody.
TRIAL_LEDGER_DAYS = 365

# --- Monitoring ---

# Whoever asks for the metrics must bring it: "Authorization: Bearer ...". Empty, there is no such page.
METRICS_TOKEN = ""

# --- What customers are told ---

TRIAL_NOTICES = False
TRIAL_REMINDER_DAYS = [7, 1]  # before the end, from high to low
TRIAL_NOTICE_WINDOW_DAYS = 7  # after the expiry; who expired earlier is not told
# A mail that fell due before this moment is not sent. After a restore: the moment of the restore. None: no limit.
TRIAL_NOTICES_SINCE = None
TRIAL_NOTICE_RATE: int | None = None  # mails a minute, of each process that sends; None: no limit
TRIAL_NOTICE_UNSUBSCRIBE = ""  # for the header List-Unsubscribe: a link or mailto:
SITE_NAME = "Trial expiry"
SITE_URL = "http://localhost:8000"
