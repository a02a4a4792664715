"""The admin, and the pages for monitoring."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from accounts.metrics import metrics
from project import health

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    # Does this process work? For the load balancer and the container, which may restart it.
    path("health/", health.process),
    # Are trials being expired? For the person on call; a restart of web would not help.
    path("health/expiry/", health.expiry),
    # For Prometheus; there is no such page until METRICS_TOKEN is set.
    path("metrics", metrics),
]
