"""The least settings of a Django project: `python -m django deposit ACCOUNT 12.50 --settings=settings`."""

INSTALLED_APPS = ["teller"]
