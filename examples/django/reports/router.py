"""Sends the models of this app to ClickHouse, to be read and nothing else."""


class CampaignsRouter:
    def db_for_read(self, model, **hints):
        return "campaigns" if model._meta.app_label == "reports" else None

    def db_for_write(self, model, **hints):
        if model._meta.app_label == "reports":
            raise RuntimeError(f"{model.__name__} is written by Tallyhouse alone")
        return None

    def allow_migrate(self, db, app_label, **hints):
        # The tables are made by `tallyhouse migrate`.
        return False if db == "campaigns" or app_label == "reports" else None
