"""The first page, and a page that stands for the product."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render


@login_required
def home(request: HttpRequest) -> HttpResponse:
    """Lead staff to the admin, a customer to the product, and anybody else to the login."""
    return redirect("admin:index" if request.user.is_staff else "app")


@login_required
def app(request: HttpRequest) -> HttpResponse:
    """Stand for the product, behind the gate. A team puts its own pages here."""
    return render(request, "app.html")
