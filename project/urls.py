"""The admin, and what monitoring asks."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView
from health_check.views import HealthCheckView

from accounts.metrics import metrics

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    # Is this process any good? For the load balancer and the container, which may restart it.
    path("health/", HealthCheckView.as_view(checks=["health_check.checks.Database"])),
    # Are trials being expired? For whoever is to be woken; restarting web would not help.
    path("health/expiry/", HealthCheckView.as_view(checks=["accounts.health.TrialExpiry"])),
    # How does trial expiry fare? For Prometheus; there is no such page until METRICS_TOKEN is set.
    path("metrics", metrics),
]
