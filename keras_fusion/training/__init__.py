"""Growth inside `fit`: schedules, callbacks, records of growths, and backups."""
