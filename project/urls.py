"""The URLs of the admin and of the pages for monitoring."""

from django.contrib import admin
from django.urls import path
from django.views.generic import RedirectView

from accounts.metrics import metrics
from project import health

urlpatterns = [
    path("", RedirectView.as_view(pattern_name="admin:index")),
    path("admin/", admin.site.urls),
    # Liveness, for the load balancer and the container engine, which may restart this process.
    path("health/", health.process),
    # Freshness of the runs, for alerts; a restart of this process would not help.
    path("health/expiry/", health.expiry),
    # For Prometheus; 404 until METRICS_TOKEN is set.
    path("metrics", metrics),
]
