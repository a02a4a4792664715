"""Base classes of the admin's lists: fast with millions of rows, and read-only where the services write the rows."""

from collections.abc import Callable, Iterable
from datetime import date
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.contrib.auth import get_user_model
from django.contrib.auth.base_user import AbstractBaseUser
from django.core.paginator import Paginator
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.dateformat import format as format_date
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator

from accounts.log import one_line
from accounts.words import NOTHING, moment, number

if TYPE_CHECKING:
    AnyModelAdmin = admin.ModelAdmin[Any]
    AnyPaginator = Paginator[Any]
else:
    AnyModelAdmin = admin.ModelAdmin
    AnyPaginator = Paginator

EMAIL_FIELD = get_user_model().get_email_field_name()
SEARCHED = [
    field.name
    for field in get_user_model()._meta.fields
    if field.name in {EMAIL_FIELD, get_user_model().USERNAME_FIELD, "first_name", "last_name"}
]
"""The fields of the user in which a search looks. ``users.User`` has an index for each."""
SEARCH_HELP = "The beginning of an e-mail address or a name, in upper or lower case; of several words, each must match."


def search_fields(path: str = "") -> list[str]:
    """The ``search_fields`` of a list whose rows reach the user by ``path``, such as ``user__``."""
    return [f"{path}{field}__istartswith" for field in SEARCHED]


def customer(user: AbstractBaseUser) -> str:
    """The e-mail address of the user, or the user name where there is none."""
    return getattr(user, EMAIL_FIELD, "") or user.get_username()


def in_utc(field: str, title: str = "", *, seconds: bool = False) -> Callable[[object, Model], str]:
    """A column for the moment in ``field``, to the minute or the second; named like the field without a ``title``."""

    @admin.display(description=title or field.replace("_", " "))
    def column(_: object, row: Model) -> str:
        return moment(getattr(row, field), seconds=seconds)

    return column


def status(row: Any, *notes: str) -> str:
    """The status of a row in words, marked by a sign and a colour, and below it the beginning of each note."""
    label = format_html('<span class="status {}">{}</span>', row.status, row.get_status_display())
    lines = ((Truncator(one_line(note, most=200)).chars(120),) for note in notes if note)
    return label + format_html_join("", '<div class="note">{}</div>', lines)


class LinkedFilter(admin.SimpleListFilter):
    """A filter that a link on another page sets, such as the accounts of one run. It is shown only while it is set."""

    choice: ClassVar[str]
    """The words for what is shown, with ``{}`` for the key that was given."""

    def lookups(self, request: HttpRequest, model_admin: object) -> Iterable[tuple[str, str]]:
        """The one choice beside "All"."""
        key = self.value()
        return [(key, self.choice.format(self.name(key)))] if key else []

    def name(self, key: str) -> str:
        """The key in words."""
        return key

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The rows of this key. What is no key leads back to the whole list, as Django's own filters do."""
        key = self.value()
        try:
            return self.filtered(queryset, key) if key else queryset
        except (ValueError, OverflowError) as error:
            raise IncorrectLookupParameters(error) from error

    def filtered(self, queryset: QuerySet[Any], key: str) -> QuerySet[Any]:
        """The rows whose column of the parameter's name has the key."""
        return queryset.filter(**{str(self.parameter_name): key})


class DayFilter(LinkedFilter):
    """A ``LinkedFilter`` whose key is a day, such as 2026-11-24."""

    def name(self, key: str) -> str:
        """The day as pages write it; what is no day stays as it is, and ``queryset`` refuses it."""
        try:
            return format_date(date.fromisoformat(key), "j F Y")
        except ValueError:
            return key


class TellingChangeList(ChangeList):
    """A list that says what it is filtered by, for those who came by a link, and that can be cleared of all of it."""

    typed: list[str]
    """The parameters that Django looks up and no filter of the list shows: somebody typed them."""

    def get_filters(self, request: HttpRequest) -> Any:
        """Django's, which has no active filter where all are typed."""
        *found, typed, duplicates, active = super().get_filters(request)
        self.typed = list(typed)
        return (*found, typed, duplicates, active or bool(typed))

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> QuerySet[Any]:
        """Django's, which would keep the typed filters when all are cleared."""
        rows = super().get_queryset(request, exclude_parameters)
        self.clear_all_filters_qs = self.get_query_string(remove=list(self.get_filters_params()))
        return rows

    @property
    def filtered_by(self) -> list[str]:
        """The choices in force, such as "status: Failed". Each filter's first choice is "All"."""
        chosen = [
            f"{spec.title}: {choice['display']}"
            for spec in self.filter_specs
            for choice in list(spec.choices(self))[1:]
            if choice["selected"]
        ]
        typed = ((name.replace("__", " ").replace("_", " "), self.params[name]) for name in self.typed)
        return chosen + [f"{name}: {value}" for name, value in typed]


class CappedPaginator(AnyPaginator):
    """Counts and shows only the first 10,000 rows. A search or a filter finds the others."""

    LIMIT = 10_000

    @cached_property
    def count(self) -> int:
        """The number of rows, ``LIMIT`` at most."""
        rows: QuerySet[Any] = self.object_list  # type: ignore[assignment]
        return rows.order_by()[: self.LIMIT].count()

    @property
    def is_capped(self) -> bool:
        """Whether there may be more rows than were counted."""
        return self.count == self.LIMIT


class LargeTableAdmin(AnyModelAdmin):
    """A list that stays fast with millions of rows: no query counts or sorts all of them."""

    change_list_template = "admin/accounts/change_list.html"
    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each facet would count all rows
    ordering = ("-pk",)
    sortable_by = ()
    empty_value_display = NOTHING

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        """The list that admin/accounts/change_list.html shows."""
        return TellingChangeList

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Django's, with the thousands separated where Django does not."""
        answer = super().changelist_view(request, extra_context)
        context = getattr(answer, "context_data", None)
        if context and "cl" in context:
            context["selection_note_all"] = f"All {number(context['cl'].result_count)} selected"
        return answer

    class Media:
        css: ClassVar = {"all": ["accounts/admin.css"]}


class ReadOnlyAdmin(LargeTableAdmin):
    """Shows rows, without forms to add, change or delete them."""

    def get_form(self, request: HttpRequest, obj: Any = None, change: bool = False, **kwargs: Any) -> Any:
        """The form without help texts, which explain what to enter."""
        nothing = dict.fromkeys((field.name for field in self.opts.get_fields()), "")
        return super().get_form(request, obj, change=change, **{"help_texts": nothing, **kwargs})

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Always False: the application creates the rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Always False: the services change the rows, because they check the rule."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: object = None) -> bool:
        """Always False: the rows are the record of what happened. ``accounts.erasure`` deletes those of a user."""
        return False
