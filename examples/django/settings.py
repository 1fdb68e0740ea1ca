"""The least that the example needs. In a project of yours, take DATABASES["campaigns"], DATABASE_ROUTERS and the app."""

import os

USE_TZ = True
TIME_ZONE = "UTC"
INSTALLED_APPS = ["clickhouse_backend", "reports"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    # Where the project keeps its own tables. Nothing of the example is in there.
    "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    "campaigns": {
        "ENGINE": "clickhouse_backend.backend",
        "NAME": os.environ.get("CLICKHOUSE_DATABASE", "campaigns"),
        # The native protocol: port 9000, or 9440 with "secure": True among the OPTIONS.
        "HOST": os.environ.get("CLICKHOUSE_HOST", "localhost"),
        "PORT": int(os.environ.get("CLICKHOUSE_PORT", "9000")),
        # A user who can only read: sql/grafana_user.sql makes one like it.
        "USER": os.environ.get("CLICKHOUSE_USER", "default"),
        "PASSWORD": os.environ.get("CLICKHOUSE_PASSWORD", ""),
        "OPTIONS": {"settings": {"max_execution_time": 30}},
        # `manage.py test` must neither make nor migrate a copy of it.
        "TEST": {"managed": False},
    },
}
DATABASE_ROUTERS = ["reports.router.CampaignsRouter"]
