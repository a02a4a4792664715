"""django.tasks with django-tasks-db 0.13: tasks in the project's database. It has no schedule: cron enqueues."""
