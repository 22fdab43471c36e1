"""The sections of a report, one file each; `order_of_sections` puts them in order."""
