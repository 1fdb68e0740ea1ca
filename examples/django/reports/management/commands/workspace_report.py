"""Prints what came of a workspace's campaigns: by day, and by campaign."""

from datetime import date
from uuid import UUID

from django.core.management.base import BaseCommand
from django.db.models import Sum

from reports.models import CampaignDaily, CampaignRecipients, CampaignReport, WorkspaceDaily

COUNTS = ["delivered", "opens", "clicks", "bounces", "unsubscribes"]


def percent(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:.1%}"


class Command(BaseCommand):
    help = __doc__

    def add_arguments(self, parser):
        parser.add_argument("workspace", type=UUID, nargs="?", help="default: the one with most delivered")
        parser.add_argument("--since", type=date.fromisoformat, default=date(1970, 1, 1), help="first UTC day")

    def handle(self, *, workspace, since, **_):
        workspace = workspace or self.largest_workspace(since)
        self.stdout.write(f"workspace {workspace}\n\n")
        self.row("day", "campaigns", *COUNTS)
        for day in WorkspaceDaily.objects.filter(workspace_id=workspace, day__gte=since).order_by("day"):
            self.row(day.day, day.campaigns, *(getattr(day, count) for count in COUNTS))

        # By name, not by alias: in ClickHouse an alias `opens` for sum(opens) would hide the column.
        sums = {f"{count}_sum": Sum(count) for count in COUNTS}
        daily = CampaignDaily.objects.filter(workspace_id=workspace, day__gte=since)
        total = daily.aggregate(**sums)
        self.row("total", "", *(total[f"{count}_sum"] for count in COUNTS))

        self.stdout.write("\nrecipients of the ten largest campaigns, over all days\n\n")
        self.row("campaign", "first day", "delivered", "open rate", "click rate", "bounce rate", widths=[36])
        largest = CampaignReport.objects.filter(workspace_id=workspace).order_by("-delivered", "campaign_id")[:10]
        largest = {campaign.campaign_id: campaign.first_day for campaign in largest}
        recipients = {of.campaign_id: of for of in CampaignRecipients.objects.filter(campaign_id__in=list(largest))}
        for campaign, first_day in largest.items():
            if of := recipients.get(campaign):
                rates = [of.open_rate_of_delivered, of.click_rate_of_delivered, of.bounce_rate_of_delivered_or_bounced]
                self.row(campaign, first_day, of.delivered, *map(percent, rates), widths=[36])

    def largest_workspace(self, since: date) -> UUID:
        by_workspace = WorkspaceDaily.objects.filter(day__gte=since).values("workspace_id")
        largest = by_workspace.annotate(delivered_sum=Sum("delivered")).order_by("-delivered_sum").first()
        if largest is None:
            raise SystemExit("no events since then")
        return largest["workspace_id"]

    def row(self, first, *others, widths=(12,)):
        cells = [f"{first!s:<{widths[0]}}", *(f"{other!s:>12}" for other in others)]
        self.stdout.write("  ".join(cells))
