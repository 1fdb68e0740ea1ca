"""Tallyhouse's views as unmanaged models: the files of `sql/single` say what each column means.

The views are already summed, one row for each key. Counts of the first three are of events; those of the next two are of distinct recipients.
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


class CampaignRecipients(models.ClickhouseModel):
    """Distinct recipients of a campaign over its life. No rate is above 1; one whose denominator is 0 is None."""

    campaign_id = models.UUIDField(primary_key=True)
    recipients = models.UInt64Field()
    delivered = models.UInt64Field()
    opened = models.UInt64Field()
    clicked = models.UInt64Field()
    opened_or_clicked = models.UInt64Field()
    bounced = models.UInt64Field()
    unsubscribed = models.UInt64Field()
    complained = models.UInt64Field()
    opened_or_clicked_undelivered = models.UInt64Field()
    open_rate_of_delivered = models.Float64Field(null=True)
    click_rate_of_delivered = models.Float64Field(null=True)
    open_or_click_rate_of_delivered = models.Float64Field(null=True)
    click_rate_of_opened = models.Float64Field(null=True)
    unsubscribe_rate_of_delivered = models.Float64Field(null=True)
    complaint_rate_of_delivered = models.Float64Field(null=True)
    bounce_rate_of_delivered_or_bounced = models.Float64Field(null=True)

    class Meta:
        managed = False
        db_table = "campaign_recipients"


class CampaignRecipientsDaily(models.ClickhouseModel):
    """Distinct recipients of a campaign by the UTC day of their first event of a type."""

    pk = CompositePrimaryKey("day", "campaign_id")
    day = models.DateField()
    campaign_id = models.UUIDField()
    delivered = models.UInt64Field()
    opened = models.UInt64Field()
    clicked = models.UInt64Field()
    bounced = models.UInt64Field()
    unsubscribed = models.UInt64Field()

    class Meta:
        managed = False
        db_table = "campaign_recipients_daily"


class CampaignTimeline(models.ClickhouseModel):
    """When the stages of a campaign were reached, in UTC. A stage that nothing shows is None."""

    campaign_id = models.UUIDField(primary_key=True)
    audience_ready = models.DateTimeField(null=True)
    template_ready = models.DateTimeField(null=True)
    audience_size = models.UInt64Field(null=True)
    first_delivery = models.DateTimeField(null=True)
    half_of_opens = models.DateTimeField(null=True)

    class Meta:
        managed = False
        db_table = "campaign_timeline"
