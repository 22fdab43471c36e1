"""The sections of a report, one file each; `overview` puts them in order."""
