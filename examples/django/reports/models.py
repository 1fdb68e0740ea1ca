"""Tallyhouse's views as unmanaged models: `sql/single/0005_event_types.sql` says what each column means.

The views are already summed, one row for each key. Counts are of events, not of distinct recipients.
"""

from clickhouse_backend import models
from django.db.models import CompositePrimaryKey


class Counts(models.ClickhouseModel):
    delivered = models.UInt64Field()
    opens = models.UInt64Field()
    clicks = models.UInt64Field()
    bounces = models.UInt64Field()
    unsubscribes = models.UInt64Field()
    sent = models.UInt64Field()
    complaints = models.UInt64Field()
    deferred = models.UInt64Field()

    class Meta:
        abstract = True


class CampaignDaily(Counts):
    """What came of a campaign on a UTC day."""

    pk = CompositePrimaryKey("day", "campaign_id", "workspace_id")
    day = models.DateField()
    campaign_id = models.UUIDField()
    workspace_id = models.UUIDField()

    class Meta:
        managed = False
        db_table = "campaign_daily"


class CampaignReport(Counts):
    """What came of a campaign in all. A rate whose denominator is 0 is None."""

    pk = CompositePrimaryKey("campaign_id", "workspace_id")
    campaign_id = models.UUIDField()
    workspace_id = models.UUIDField()
    first_day = models.DateField()
    last_day = models.DateField()
    open_rate = models.Float64Field(null=True)
    click_rate = models.Float64Field(null=True)
    click_to_open_rate = models.Float64Field(null=True)
    bounce_rate = models.Float64Field(null=True)
    unsubscribe_rate = models.Float64Field(null=True)
    complaint_rate = models.Float64Field(null=True)

    class Meta:
        managed = False
        db_table = "campaign_report"


class WorkspaceDaily(Counts):
    """What came of all campaigns of a workspace on a UTC day."""

    pk = CompositePrimaryKey("day", "workspace_id")
    day = models.DateField()
    workspace_id = models.UUIDField()
    campaigns = models.UInt64Field()

    class Meta:
        managed = False
        db_table = "workspace_daily"
