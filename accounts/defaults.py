"""The default of each setting that ``accounts`` reads. accounts/checks.py defines the valid values.

A project's settings begin with ``from accounts.defaults import *`` and then override what differs.
"""

# --- The rule ---

TRIAL_DAYS = 60  # for accounts created from now on
TRIAL_GRACE_DAYS = 1
# The fuse: a run that finds more accounts due than this changes none. None: no limit.
TRIAL_EXPIRY_MAX: int | None = None
# Alert when no run succeeded for this long. Three ticks of the hourly schedule, so that one failure raises no alert.
TRIAL_RUN_MAX_AGE_HOURS = 3.0
# How long the ledger keeps runs that expired no account.
TRIAL_LEDGER_DAYS = 365

# --- Access ---

# Whether the middleware accounts.gate closes pages to customers whose trial is over.
TRIAL_GATE = True
# The path of the customer's page, accounts.views.trial.
TRIAL_URL = "/trial/"
# Where a customer chooses a plan: a URL, or a path of this project. Empty: customers are told whom to ask.
BILLING_URL = ""
# Whom customers ask. Empty: the address of DEFAULT_FROM_EMAIL.
SUPPORT_EMAIL = ""

# --- Monitoring ---

# The bearer token that a request for the metrics must send. Empty: the metrics page does not exist.
METRICS_TOKEN = ""
# A URL to ping when a run starts and ends, for a monitor that raises an alarm at silence. Empty: no ping.
TRIAL_PING_URL = ""

# --- Mails to customers ---

TRIAL_NOTICES = False
TRIAL_REMINDER_DAYS = [7, 1]  # before the end, from high to low
TRIAL_NOTICE_WINDOW_DAYS = 7  # no mail about an expiry that is older than this
# A mail that became due before this moment is not sent. After a restore: the moment of the restore. None: no limit.
TRIAL_NOTICES_SINCE = None
TRIAL_NOTICE_RATE: int | None = None  # mails per minute, for each process that sends; None: no limit
TRIAL_NOTICE_UNSUBSCRIBE = ""  # for the header List-Unsubscribe: a link or mailto:
SITE_NAME = "Trial expiry"
SITE_URL = "http://localhost:8000"
