"""The URLs of the customer's pages, of the admin and of the pages for monitoring."""

from django.contrib import admin
from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path

from accounts.gate import trial_not_required
from accounts.metrics import metrics
from accounts.views import trial
from project import health, pages

urlpatterns = [
    path("", pages.home),
    path("app/", pages.app, name="app"),
    path("trial/", trial),
    path("login/", LoginView.as_view(), name="login"),
    path("logout/", trial_not_required(LogoutView.as_view(next_page="login")), name="logout"),
    path("admin/", admin.site.urls),
    # Liveness, for the load balancer and the container engine, which may restart this process.
    path("health/", health.process),
    # Freshness of the runs, for alerts; a restart of this process would not help.
    path("health/expiry/", health.expiry),
    # For Prometheus; 404 until METRICS_TOKEN is set.
    path("metrics", metrics),
]
